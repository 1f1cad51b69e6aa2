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
    ?assertMatch({[{1001, _}], 1001}, distsec_ring:read(critical, 0, 256, wait)),
    ok = distsec_ring:acknowledge(critical, 1001),
    ?assertEqual({[], 1001}, distsec_ring:read(critical, 0, 256, wait)).

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
    {Table, Atomics} = persistent_term:get({distsec, ring}),
    2 = atomics:add_get(Atomics, 1, 1),
    distsec_ring:put(critical, #{n => 3}),
    ?assertMatch({[{1, _}], 1}, distsec_ring:read(critical, 0, 10, 0)),
    ?assertMatch({[], 1}, distsec_ring:read(critical, 1, 10, 1)),
    ?assertMatch({[{3, _}], 3}, distsec_ring:read(critical, 1, 10, 2)),
    ets:insert(Table, {{critical, 2}, 2, #{n => 2}}),
    ?assertMatch({[{2, _}, {3, _}], 3}, distsec_ring:read(critical, 1, 10, 0)).
