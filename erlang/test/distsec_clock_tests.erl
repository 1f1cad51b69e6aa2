-module(distsec_clock_tests).
-include_lib("eunit/include/eunit.hrl").

-define(DAY, 86400000).
-define(HOLD, 600000).

memory() ->
    #{believed => 1000000, seen => 1000000, ahead_since => undefined}.

%% The wall clock is Ahead of what is believed at steady time Steady.
look(Ahead, Steady, Memory) ->
    distsec_clock:look(1000000 + Ahead + Steady, Steady, Memory).

time_goes_on_while_the_clock_is_set_back_test() ->
    ?assertEqual(1000000 + 5000, distsec_clock:judged(1000000 + 5000 - ?DAY, 5000, 1000000)).

a_clock_that_is_ahead_is_taken_at_its_word_test() ->
    ?assertEqual(1000000 + 5000 + ?DAY, distsec_clock:judged(1000000 + 5000 + ?DAY, 5000, 1000000)).

a_clock_that_was_set_is_told_once_and_by_how_much_test() ->
    {Back, After} = look(-?DAY, 1000, memory()),
    ?assertEqual(-?DAY, Back),
    {Again, _} = look(-?DAY, 2000, After),
    ?assertEqual(0, Again),
    {Forth, _} = look(0, 3000, After),
    ?assertEqual(?DAY, Forth).

a_clock_that_was_set_back_is_never_believed_test() ->
    {_, Back} = look(-?DAY, 1000, memory()),
    {_, Later} = look(-?DAY, 1000 + 10 * ?HOLD, Back),
    ?assertMatch(#{believed := 1000000}, Later).

small_differences_are_followed_ahead_only_test() ->
    {0, Ahead} = look(700, 1000, memory()),
    ?assertMatch(#{believed := 1000700}, Ahead),
    {0, Back} = look(-700, 2000, Ahead),
    ?assertMatch(#{believed := 1000700}, Back).

a_step_ahead_that_is_taken_back_is_forgotten_test() ->
    {?DAY, Ahead} = look(?DAY, 1000, memory()),
    {0, Still} = look(?DAY, 999 + ?HOLD, Ahead),
    ?assertMatch(#{believed := 1000000}, Still),
    {-?DAY, Back} = look(0, 1000 + ?HOLD, Still),
    ?assertMatch(#{believed := 1000000, ahead_since := undefined}, Back).

a_step_ahead_that_holds_is_believed_test() ->
    {_, Ahead} = look(?DAY, 1000, memory()),
    {0, Believed} = look(?DAY, 1000 + ?HOLD, Ahead),
    ?assertMatch(#{believed := Offset} when Offset =:= 1000000 + ?DAY, Believed).

a_second_step_ahead_begins_the_wait_anew_test() ->
    {_, Once} = look(?DAY, 1000, memory()),
    {_, Twice} = look(2 * ?DAY, ?HOLD, Once),
    {0, Later} = look(2 * ?DAY, 1000 + ?HOLD, Twice),
    ?assertMatch(#{believed := 1000000}, Later).

of_a_node_the_time_is_the_wall_clocks_test() ->
    ok = distsec_clock:new(),
    Before = os:system_time(second),
    Now = distsec_clock:now(),
    ?assert(Now >= Before - 1),
    ?assert(Now =< os:system_time(second) + 1).
