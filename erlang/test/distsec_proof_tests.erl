-module(distsec_proof_tests).

-include_lib("eunit/include/eunit.hrl").

-define(LINK, <<1:256>>).
-define(NONCE, <<2:256>>).

about() ->
    #{link => ?LINK, dialler => <<"a@h">>, acceptor => <<"b@h">>, nonces => <<?NONCE/binary, 3:256>>}.

an_opening_is_read_as_it_was_written_test() ->
    ?assertEqual({ok, ?LINK, ?NONCE, <<"a@h">>},
                 distsec_proof:read_opening(distsec_proof:opening(?LINK, ?NONCE, <<"a@h">>))).

what_is_no_opening_is_refused_test_() ->
    Whole = distsec_proof:opening(?LINK, ?NONCE, <<"a@h">>),
    Long = binary:copy(<<"a">>, 254),
    [?_assertEqual(error, distsec_proof:read_opening(Frame))
     || Frame <- [<<>>, binary:part(Whole, 0, 65), <<2, (binary:part(Whole, 1, byte_size(Whole) - 1))/binary>>,
                  distsec_proof:opening(?LINK, ?NONCE, <<Long/binary, "@h">>),
                  distsec_proof:opening(?LINK, ?NONCE, <<"no name">>),
                  distsec_proof:opening(?LINK, ?NONCE, <<"a@h", 0>>)]].

a_mac_is_known_by_the_cookie_it_was_made_with_test() ->
    Cookies = [{current, <<"new">>}, {other, <<"old">>}],
    Made = fun(Cookie) -> distsec_proof:mac(dialler, Cookie, about()) end,
    ?assertEqual({ok, current}, distsec_proof:known_by(dialler, Made(<<"new">>), {Cookies, about()})),
    ?assertEqual({ok, other}, distsec_proof:known_by(dialler, Made(<<"old">>), {Cookies, about()})),
    ?assertEqual(error, distsec_proof:known_by(dialler, Made(<<"none">>), {Cookies, about()})),
    ?assertEqual(error, distsec_proof:known_by(dialler, <<>>, {Cookies, about()})).

%% Reflected, of another link, another nonce or between others it is worth nothing.
a_mac_is_good_for_one_role_link_nonce_and_pair_test_() ->
    Cookies = [{current, <<"c">>}],
    Mac = distsec_proof:mac(dialler, <<"c">>, about()),
    [?_assertEqual(error, distsec_proof:known_by(Role, Mac, {Cookies, About}))
     || {Role, About} <- [{acceptor, about()},
                          {dialler, (about())#{link := <<9:256>>}},
                          {dialler, (about())#{nonces := <<?NONCE/binary, 4:256>>}},
                          {dialler, (about())#{dialler := <<"c@h">>}},
                          {dialler, (about())#{acceptor := <<"c@h">>}},
                          %% the same bytes, cut at another place
                          {dialler, (about())#{dialler := <<"a@hb">>, acceptor := <<"@h">>}}]].
