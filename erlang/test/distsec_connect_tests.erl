-module(distsec_connect_tests).
-include_lib("eunit/include/eunit.hrl").

the_lesser_name_dials_at_once_and_the_greater_a_second_later_test() ->
    ?assertMatch({[<<"b@h">>], _}, distsec_connect:due([<<"b@h">>], <<"a@h">>, #{}, 5000)),
    {[], Known} = distsec_connect:due([<<"a@h">>], <<"b@h">>, #{}, 5000),
    ?assertMatch({[], _}, distsec_connect:due([<<"a@h">>], <<"b@h">>, Known, 5999)),
    ?assertMatch({[<<"a@h">>], _}, distsec_connect:due([<<"a@h">>], <<"b@h">>, Known, 6000)).

each_peer_waits_for_itself_alone_test() ->
    Attempts = #{<<"b@h">> => #{next_ms => 9000, backoff_ms => 500}},
    ?assertMatch({[<<"c@h">>], #{<<"b@h">> := #{next_ms := 9000}}},
                 distsec_connect:due([<<"b@h">>, <<"c@h">>], <<"a@h">>, Attempts, 5000)).

%% However many peers never answer, one that does is dialled; and a handful at a time are begun.
peers_that_do_not_answer_hold_nobody_up_test() ->
    Silent = [{integer_to_binary(N), 1000} || N <- lists:seq(1, 50)],
    ?assertEqual([<<"x">>], distsec_connect:chosen([<<"x">>], Silent, 2000)),
    ?assertEqual([], distsec_connect:chosen([<<"x">>], Silent, 1999)),
    Due = [integer_to_binary(N) || N <- lists:seq(1, 9)],
    ?assertEqual(lists:sublist(Due, 4), distsec_connect:chosen(Due, [], 0)),
    ?assertEqual(lists:sublist(Due, 1), distsec_connect:chosen(Due, [{P, 0} || P <- [a, b, c]], 0)).
