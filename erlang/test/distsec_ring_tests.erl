-module(distsec_ring_tests).
-include_lib("eunit/include/eunit.hrl").

all(Lane) ->
    {Events, Next} = distsec_ring:read(Lane, 0, 1000000, pass),
    {[N || {N, _} <- Events], Next}.

keeps_the_order_and_numbers_from_one_test() ->
    ok = distsec_ring:new(),
    [distsec_ring:put(critical, #{n => N}) || N <- [1, 2, 3]],
    ?assertEqual({[1, 2, 3], 3}, all(critical)),
    ?assertEqual({[], 0}, all(refusals)).

a_hundred_thousand_refusals_evict_no_violation_test_() ->
    {timeout, 60, fun a_hundred_thousand_refusals_evict_no_violation/0}.

a_hundred_thousand_refusals_evict_no_violation() ->
    ok = distsec_ring:new(),
    distsec_ring:put(critical, #{type => violation}),
    [distsec_ring:put(refusals, #{n => N}) || N <- lists:seq(1, 100000)],
    ?assertEqual({[1], 1}, all(critical)),
    ?assertEqual(0, distsec_ring:dropped(critical)),
    Capacity = distsec_ring:capacity(refusals),
    ?assertEqual(100000 - Capacity, distsec_ring:dropped(refusals)),
    {Kept, 100000} = all(refusals),
    ?assertEqual(lists:seq(100000 - Capacity + 1, 100000), Kept).

what_was_acknowledged_is_gone_and_is_no_loss_test() ->
    ok = distsec_ring:new(),
    Capacity = distsec_ring:capacity(refusals),
    [distsec_ring:put(refusals, #{}) || _ <- lists:seq(1, Capacity)],
    ok = distsec_ring:acknowledge(refusals, Capacity),
    ?assertEqual({[], Capacity}, all(refusals)),
    [distsec_ring:put(refusals, #{}) || _ <- lists:seq(1, Capacity)],
    ?assertEqual(0, distsec_ring:dropped(refusals)),
    ?assertMatch({[_ | _], _}, all(refusals)).

%% To an orchestrator that has just begun, which has seen nothing of this launch.
whoever_begins_at_0_has_what_is_left_at_once_test() ->
    ok = distsec_ring:new(),
    [distsec_ring:put(critical, #{}) || _ <- lists:seq(1, 1001)],
    ok = distsec_ring:acknowledge(critical, 1000),
    ?assertMatch({[{1001, _}], 1001}, distsec_ring:read(critical, 0, 256, 0)),
    ok = distsec_ring:acknowledge(critical, 1001),
    ?assertEqual({[], 1001}, distsec_ring:read(critical, 0, 256, 0)).

acknowledging_what_never_was_changes_nothing_test() ->
    ok = distsec_ring:new(),
    distsec_ring:put(critical, #{}),
    ok = distsec_ring:acknowledge(critical, 1 bsl 40),
    distsec_ring:put(critical, #{}),
    ?assertEqual({[2], 2}, all(critical)).

reads_in_parts_test() ->
    ok = distsec_ring:new(),
    [distsec_ring:put(critical, #{}) || _ <- lists:seq(1, 10)],
    {A, 4} = distsec_ring:read(critical, 0, 4, 0),
    {B, 10} = distsec_ring:read(critical, 4, 100, 0),
    ?assertEqual(lists:seq(1, 10), [N || {N, _} <- A ++ B]).

many_writers_lose_nothing_below_the_capacity_test_() ->
    {timeout, 60, fun many_writers_lose_nothing_below_the_capacity/0}.

many_writers_lose_nothing_below_the_capacity() ->
    ok = distsec_ring:new(),
    Writers = [spawn_monitor(fun() -> [distsec_ring:put(refusals, #{}) || _ <- lists:seq(1, 500)]
                             end) || _ <- lists:seq(1, 16)],
    [receive {'DOWN', R, process, P, normal} -> ok end || {P, R} <- Writers],
    ?assertEqual({lists:seq(1, 8000), 8000}, all(refusals)).

%% In a process of its own, to which nothing else that was tested is still sending.
wakes_the_agent_once_until_it_reads_test_() ->
    {spawn, fun wakes_the_agent_once_until_it_reads/0}.

wakes_the_agent_once_until_it_reads() ->
    ok = distsec_ring:new(),
    true = register(distsec_agent, self()),
    [distsec_ring:put(refusals, #{}) || _ <- lists:seq(1, 1000)],
    receive distsec_wake -> ok after 1000 -> ?assert(false) end,
    ?assertEqual({message_queue_len, 0}, process_info(self(), message_queue_len)),
    ok = distsec_ring:rearm(),
    distsec_ring:put(refusals, #{}),
    receive distsec_wake -> ok after 1000 -> ?assert(false) end,
    true = unregister(distsec_agent).

%% A writer that was ended between taking its number and storing costs nobody else's event, and a
%% writer that is merely slow loses nothing.
waits_for_a_number_that_is_not_stored_yet_and_passes_one_that_never_will_be_test() ->
    ok = distsec_ring:new(),
    distsec_ring:put(critical, #{n => 1}),
    2 = take_number(critical),
    distsec_ring:put(critical, #{n => 3}),
    ?assertMatch({[{1, _}], 1}, distsec_ring:read(critical, 0, 10, 0)),
    ?assertMatch({[], 1}, distsec_ring:read(critical, 1, 10, 1)),
    ?assertEqual(0, distsec_ring:dropped(critical)),
    late_put(critical, 2, #{n => 2}),
    ?assertMatch({[{2, _}, {3, _}], 3}, distsec_ring:read(critical, 1, 10, 0)),
    ?assertEqual(0, distsec_ring:dropped(critical)).

one_that_was_given_up_is_dropped_once_whenever_its_writer_comes_test() ->
    ok = distsec_ring:new(),
    Capacity = distsec_ring:capacity(critical),
    1 = take_number(critical),
    2 = take_number(critical),
    distsec_ring:put(critical, #{n => 3}),
    ?assertMatch({[{3, _}], 3}, distsec_ring:read(critical, 0, 10, 2)),
    ?assertEqual(2, distsec_ring:dropped(critical)),
    late_put(critical, 1, #{n => 1}),
    ?assertMatch({[{3, _}], 3}, distsec_ring:read(critical, 0, 10, 2)), % a reader that begins again
    ok = distsec_ring:acknowledge(critical, 3),
    late_put(critical, 2, #{n => 2}),
    ?assertEqual({[], 3}, all(critical)),
    ?assertEqual(2, distsec_ring:dropped(critical)),
    %% Its slot is of use again.
    [distsec_ring:put(critical, #{}) || _ <- lists:seq(1, Capacity)],
    ?assertEqual({lists:seq(4, Capacity + 3), Capacity + 3}, all(critical)),
    ?assertEqual(2, distsec_ring:dropped(critical)).

%% Given up and then overwritten, with nobody who acknowledges: dropped once all the same.
one_that_was_given_up_is_not_counted_again_when_its_slot_is_taken_test() ->
    ok = distsec_ring:new(),
    Capacity = distsec_ring:capacity(refusals),
    1 = take_number(refusals),
    {[], 1} = distsec_ring:read(refusals, 0, 10, 1),
    [distsec_ring:put(refusals, #{}) || _ <- lists:seq(1, Capacity + 1)],
    ?assertEqual(2, distsec_ring:dropped(refusals)),
    late_put(refusals, 1, #{}),
    ?assertEqual({lists:seq(3, Capacity + 2), Capacity + 2}, all(refusals)),
    ?assertEqual(2, distsec_ring:dropped(refusals)).

a_writer_that_a_whole_ring_overtook_overwrites_nothing_test() ->
    ok = distsec_ring:new(),
    Capacity = distsec_ring:capacity(refusals),
    1 = take_number(refusals),
    [distsec_ring:put(refusals, #{n => N}) || N <- lists:seq(2, Capacity + 1)],
    ?assertEqual(1, distsec_ring:dropped(refusals)),
    late_put(refusals, 1, #{n => 1}),
    ?assertEqual({lists:seq(2, Capacity + 1), Capacity + 1}, all(refusals)),
    ?assertEqual(1, distsec_ring:dropped(refusals)).

%% Two numbers of one slot are not stored: the later writer, if it comes first, speaks for both.
whoever_takes_a_slot_counts_what_was_never_stored_in_it_test() ->
    ok = distsec_ring:new(),
    Capacity = distsec_ring:capacity(refusals),
    1 = take_number(refusals),
    [distsec_ring:put(refusals, #{}) || _ <- lists:seq(2, Capacity)],
    Second = take_number(refusals),
    [distsec_ring:put(refusals, #{}) || _ <- lists:seq(2, Capacity + 1)],
    Last = 2 * Capacity + 1,
    ?assertEqual(Last - Capacity, distsec_ring:dropped(refusals)),
    late_put(refusals, Second, #{}),
    late_put(refusals, 1, #{}),
    ?assertEqual({lists:seq(Capacity + 2, Last), Last}, all(refusals)),
    ?assertEqual(Last - Capacity, distsec_ring:dropped(refusals)).

%% What a writer does first.
take_number(Lane) ->
    {_, Atomics} = persistent_term:get({distsec, ring}),
    atomics:add_get(Atomics, case Lane of critical -> 1; refusals -> 4 end, 1).

%% What it does then, as if it had stood still: put/2 with a number that it has already. The counter of
%% numbers is set back for it, and nobody else writes.
late_put(Lane, Number, Event) ->
    {_, Atomics} = persistent_term:get({distsec, ring}),
    At = case Lane of critical -> 1; refusals -> 4 end,
    Last = atomics:get(Atomics, At),
    ok = atomics:put(Atomics, At, Number - 1),
    ok = distsec_ring:put(Lane, Event),
    ok = atomics:put(Atomics, At, Last).
