-module(distsec_cookies_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-export([prop_what_was_made_with_no_cookie_of_ours_is_handed_on_as_it_came/0]).

-define(IN_USE, <<"pold">>).
-define(OTHER, <<"pnew">>).
-define(CHALLENGE, 3735928559).
-define(ANSWERING, 305419896).

%% ---- frames as dist_util makes them -------------------------------------------------------------

challenge() ->
    Name = <<"a@h">>,
    iolist_to_binary([<<$N, 16#0102030405060708:64, ?CHALLENGE:32, 4:32, (byte_size(Name)):16>>, Name]).

reply(Cookie) ->
    iolist_to_binary([<<$r, ?ANSWERING:32>>, distsec_cookies:digest(?CHALLENGE, Cookie)]).

ack(Cookie) ->
    iolist_to_binary([$a, distsec_cookies:digest(?ANSWERING, Cookie)]).

with(Candidates) ->
    distsec_cookies:challenged(challenge(), fun() -> Candidates end, distsec_cookies:greeted(Candidates)).

either() ->
    with([{current, ?IN_USE}, {other, ?OTHER}]).

%% ---- what a listener does -----------------------------------------------------------------------

a_digest_is_the_one_of_dist_util_test() ->
    ?assertEqual(erlang:md5(["pold" | "305419896"]), distsec_cookies:digest(305419896, <<"pold">>)).

an_answer_with_the_cookie_in_use_is_handed_on_test() ->
    {Frame, After} = distsec_cookies:answered(reply(?IN_USE), either()),
    ?assertEqual(reply(?IN_USE), Frame),
    ?assertEqual(ack(?IN_USE), distsec_cookies:acknowledged(ack(?IN_USE), After)).

an_answer_with_the_other_cookie_becomes_the_one_that_is_expected_test() ->
    {Frame, After} = distsec_cookies:answered(reply(?OTHER), either()),
    ?assertEqual(reply(?IN_USE), Frame),
    ?assertEqual(ack(?OTHER), distsec_cookies:acknowledged(ack(?IN_USE), After)).

a_wrong_answer_stays_wrong_test_() ->
    [?_assertMatch({Wrong, #{}}, distsec_cookies:answered(Wrong, either()))
     || Wrong <- [reply(<<"pstranger">>), iolist_to_binary([reply(?OTHER), 0]),
                  binary:part(reply(?OTHER), 0, 20), <<>>,
                  iolist_to_binary([$x, binary:part(reply(?OTHER), 1, 20)])]].

without_another_cookie_none_is_taken_test() ->
    ?assertMatch({_, #{}}, distsec_cookies:answered(reply(?OTHER), with([{current, ?IN_USE}]))),
    {Frame, _} = distsec_cookies:answered(reply(?OTHER), with([{current, ?IN_USE}])),
    ?assertEqual(reply(?OTHER), Frame).

a_reply_before_the_challenge_is_handed_on_test() ->
    Greeted = distsec_cookies:greeted([{current, ?IN_USE}, {other, ?OTHER}]),
    ?assertEqual({reply(?OTHER), Greeted}, distsec_cookies:answered(reply(?OTHER), Greeted)).

only_the_challenge_is_read_for_one_test_() ->
    Greeted = distsec_cookies:greeted([{current, ?IN_USE}]),
    [?_assertEqual(Greeted, distsec_cookies:challenged(Other, fun() -> error(asked) end, Greeted))
     || Other <- [<<"sok">>, <<"sok_simultaneous_and_longer">>, <<>>, <<$N>>]].

%% The cookie was changed while dist_util may have asked for it or not.
a_change_in_the_middle_has_the_peer_dial_again_test_() ->
    Middle = distsec_cookies:challenged(challenge(), fun() -> [{current, ?OTHER}, {other, ?IN_USE}] end,
                                        distsec_cookies:greeted([{current, ?IN_USE}, {other, ?OTHER}])),
    [?_assertEqual(again, distsec_cookies:answered(reply(?IN_USE), Middle)),
     ?_assertEqual(again, distsec_cookies:answered(reply(?OTHER), Middle)),
     ?_assertEqual({reply(<<"pstranger">>), Middle}, distsec_cookies:answered(reply(<<"pstranger">>), Middle))].

whatever_comes_in_place_of_the_acknowledgement_is_sent_as_it_is_test() ->
    {_, After} = distsec_cookies:answered(reply(?OTHER), either()),
    ?assertEqual(<<"snok">>, distsec_cookies:acknowledged(<<"snok">>, After)).

prop_what_was_made_with_no_cookie_of_ours_is_handed_on_as_it_came() ->
    Frame = oneof([binary(), ?LET(Rest, binary(20), iolist_to_binary([$r, Rest])),
                   ?LET(Cookie, binary(), reply(<<"x", Cookie/binary>>))]),
    ?FORALL(Given, Frame,
            begin
                {Taken, After} = distsec_cookies:answered(Given, either()),
                Taken =:= Given andalso not is_map_key(acknowledge, After)
            end).
