-module(distsec_futile_tests).
-include_lib("eunit/include/eunit.hrl").

-define(RULE, <<"cli-*@h">>).

with_table(Test) ->
    {spawn, {timeout, 60, fun() -> ok = distsec_futile:new(), Test() end}}.

names_count_for_their_certificate_and_rule_test_() ->
    with_table(fun() ->
                       ok = distsec_futile:add(<<"01">>, ?RULE, <<"cli-1@h">>),
                       ok = distsec_futile:add(<<"01">>, ?RULE, <<"cli-2@h">>),
                       ok = distsec_futile:add(<<"01">>, ?RULE, <<"cli-1@h">>),
                       ?assertEqual([<<"cli-1@h">>, <<"cli-2@h">>],
                                    distsec_futile:names(<<"01">>, ?RULE)),
                       ?assertEqual([], distsec_futile:names(<<"02">>, ?RULE)),
                       ?assertEqual([], distsec_futile:names(<<"01">>, <<"x-*@h">>))
               end).

after_a_minute_they_count_no_more_test_() ->
    with_table(fun() ->
                       ok = distsec_futile:add(<<"01">>, ?RULE, <<"cli-1@h">>),
                       [{Key, Until}] = ets:tab2list(distsec_futile),
                       ?assert(Until - erlang:monotonic_time(millisecond) > 50000),
                       ets:insert(distsec_futile, {Key, erlang:monotonic_time(millisecond)}),
                       ?assertEqual([], distsec_futile:names(<<"01">>, ?RULE)),
                       ok = distsec_futile:add(<<"02">>, ?RULE, <<"cli-2@h">>),
                       ?assertEqual(1, ets:info(distsec_futile, size))
               end).

the_table_is_bounded_and_a_full_one_says_so_test_() ->
    with_table(fun() ->
                       [ok = distsec_futile:add(<<"01">>, ?RULE, integer_to_binary(N))
                        || N <- lists:seq(1, 5000)],
                       ?assertEqual(4096, ets:info(distsec_futile, size)),
                       ?assertEqual(full, distsec_futile:names(<<"02">>, ?RULE))
               end).
