%% The watcher, in a node of its own (peer), whose links are connections that its emulator takes for some.
-module(distsec_watch_tests).
-include_lib("eunit/include/eunit.hrl").

-export([run/1]).

-define(PEER, 'b@127.0.0.1').
-define(NAME, <<"b@127.0.0.1">>).
-define(PATIENCE_MS, 60000).

%% ---- a node -------------------------------------------------------------------------------------

%% Case is a function of this module, carried out in a node that listens nowhere.
in_a_node_(Case) ->
    {timeout, 2 * ?PATIENCE_MS div 1000, fun() -> in_a_node(Case) end}.

in_a_node(Case) ->
    {ok, Peer, _} = peer:start(#{name => "a", host => "127.0.0.1", longnames => true,
                                 connection => standard_io, wait_boot => ?PATIENCE_MS,
                                 exec => filename:join([code:root_dir(), "bin", "erl"]),
                                 args => ["-pa", filename:dirname(code:which(?MODULE)), "-setcookie", "x",
                                          "-dist_listen", "false", "-start_epmd", "false"]}),
    try peer:call(Peer, ?MODULE, run, [Case], ?PATIENCE_MS) of
        Answer -> ?assertEqual(ok, Answer)
    after
        peer:stop(Peer)
    end.

-spec run(atom()) -> ok | term().
run(Case) ->
    ok = distsec_count:new(),
    ok = distsec_clock:new(),
    ok = distsec_ring:new(),
    ok = distsec_links:new(),
    ok = distsec_attempts:new(),
    {ok, _} = distsec_attempts:start_link(),
    in_force([]),
    try case_of(Case) catch Class:Why:Stack -> {Class, Why, Stack} end.

in_force(Denied) ->
    distsec_policy:put_in_force(
      #{generation => 1 + length(Denied), cluster => <<"c">>, issued_at => 0, connect => none,
        require_identity => false, denied => Denied, rules => [], revoked => [],
        peers => [#{name => ?NAME, identity => <<>>, phase => open, address => undefined,
                    port => undefined}]},
      <<>>).

%% The emulator's nodeup, as dist_util makes it; its end is the controller's.
connect() ->
    connect(false).

connect(Stays) ->
    Test = self(),
    Controller = spawn(fun() ->
                               process_flag(trap_exit, Stays),
                               _ = erts_internal:new_connection(?PEER),
                               _ = erlang:setnode(?PEER, self(), {flags(), 1}),
                               Test ! {self(), up},
                               receive {Test, go} -> ok end
                       end),
    receive {Controller, up} -> Controller after ?PATIENCE_MS div 2 -> error(no_link) end.

flags() ->
    element(2, erts_internal:get_dflags()). % those that this emulator would send

disconnect(Controller) ->
    Controller ! {self(), go},
    await(fun() -> not lists:member(?PEER, nodes(connected)) end).

await(Condition) ->
    case Condition() of
        true -> ok;
        false -> receive after 1 -> await(Condition) end
    end.

told() ->
    {Events, _} = distsec_ring:read(critical, 0, 1000, pass),
    [Type || {_, #{type := Type, link := #{peer := ?NAME}}} <- Events].

checked() ->
    [Check || {Action, _, _} = Check <- maps:get(checks, distsec_count:report()), Action =:= link_in].

watch() ->
    {ok, Watcher} = distsec_watch:start_link(),
    unlink(Watcher),
    audited(Watcher).

%% All that came before has been dealt with.
audited(Watcher) ->
    ok = gen_server:call(Watcher, audit),
    Watcher.

kill(Watcher) ->
    Monitor = monitor(process, Watcher),
    exit(Watcher, kill),
    receive {'DOWN', Monitor, _, _, _} -> ok end.

await_told(Events) ->
    await(fun() -> told() =:= Events end).

%% ---- nodeup -------------------------------------------------------------------------------------

a_link_that_an_audit_finds_before_its_nodeup_is_told_once_test_() ->
    in_a_node_(known_before_nodeup).

a_violation_that_an_audit_finds_before_its_nodeup_is_told_once_test_() ->
    in_a_node_(violation_before_nodeup).

a_link_that_takes_the_place_of_another_is_judged_test_() ->
    in_a_node_(another_in_its_place).

-spec case_of(atom()) -> ok.
case_of(known_before_nodeup) ->
    _ = connect(),
    Watcher = watch(),
    await_told([link_up]),
    Before = checked(),
    Watcher ! {nodeup, ?PEER, [{node_type, visible}]},
    #{settling := Settling} = sys:get_state(Watcher), % where it would be before it is judged again
    ?assertEqual({#{}, Before}, {Settling, checked()});
case_of(violation_before_nodeup) ->
    in_force([?NAME]),
    _ = connect(true),
    Watcher = watch(),
    ?assertEqual([violation], told()),
    Watcher ! {nodeup, ?PEER, [{node_type, visible}]},
    _ = audited(Watcher),
    ?assertEqual([violation], told());
case_of(another_in_its_place) ->
    _ = connect(),
    Watcher = watch(),
    await_told([link_up]),
    {ok, Link} = distsec_links:find(?PEER),
    distsec_links:put(?PEER, Link#{controller => self()}),
    Watcher ! {nodeup, ?PEER, [{node_type, visible}]},
    await_told([link_up, link_down, link_up]);

%% ---- a watcher that starts again ----------------------------------------------------------------

case_of(ended_unseen) ->
    Controller = connect(),
    Watcher = watch(),
    await_told([link_up]),
    kill(Watcher),
    disconnect(Controller),
    _ = watch(),
    ?assertEqual([link_up, link_down], told()),
    ?assertEqual([], distsec_links:all());
case_of(replaced_unseen) ->
    Controller = connect(),
    Watcher = watch(),
    await_told([link_up]),
    kill(Watcher),
    disconnect(Controller),
    _ = connect(),
    _ = watch(),
    await_told([link_up, link_down, link_up]);
case_of(seen_by_both) ->
    _ = connect(),
    Watcher = watch(),
    await_told([link_up]),
    kill(Watcher),
    Before = checked(),
    _ = watch(),
    ?assertEqual({[link_up], Before}, {told(), checked()});

%% ---- enforcement --------------------------------------------------------------------------------

case_of(no_watcher) ->
    Controller = connect(true),
    Pending = pending(),
    in_force([?NAME]),
    ?assertEqual([?NAME], distsec_watch:enforce(100)),
    await(fun() -> not is_process_alive(Pending) end),
    disconnect(Controller),
    ?assertEqual([], distsec_watch:enforce(100));
case_of(watcher_hangs) ->
    Controller = connect(true),
    Watcher = watch(),
    sys:suspend(Watcher),
    Pending = pending(),
    in_force([?NAME]),
    ?assertEqual([?NAME], distsec_watch:enforce(100)),
    await(fun() -> not is_process_alive(Pending) end),
    disconnect(Controller),
    ?assertEqual([], distsec_watch:enforce(100)),
    sys:resume(Watcher),
    ?assertEqual([], distsec_watch:enforce(?PATIENCE_MS));
case_of(watcher_comes) ->
    _ = connect(),
    in_force([?NAME]),
    {_, Monitor} = spawn_monitor(fun() -> exit({left, distsec_watch:enforce(?PATIENCE_MS)}) end),
    receive {'DOWN', Monitor, _, _, Early} -> error(Early) after 50 -> ok end,
    _ = watch(),
    receive {'DOWN', Monitor, _, _, Why} -> ?assertEqual({left, []}, Why) end,
    ?assertNot(lists:member(?PEER, nodes(connected)));
case_of(not_disconnected) ->
    _ = connect(),
    ?assertEqual(still_up, distsec_watch:disconnect(?NAME, 100)),
    _ = watch(),
    ?assertEqual(ok, distsec_watch:disconnect(?NAME, ?PATIENCE_MS)).

pending() ->
    Pid = spawn(fun() -> receive never -> ok end end),
    {ok, _} = distsec_attempts:inbound(Pid, #{direction => in, name => ?NAME, identity => <<"x">>,
                                              serial => <<"0a">>, not_after => undefined}),
    Pid.

what_ended_while_there_was_no_watcher_is_told_test_() -> in_a_node_(ended_unseen).
what_was_replaced_while_there_was_no_watcher_is_told_test_() -> in_a_node_(replaced_unseen).
what_is_up_when_a_watcher_starts_again_is_not_told_again_test_() -> in_a_node_(seen_by_both).

a_denial_without_a_watcher_says_what_is_up_test_() -> in_a_node_(no_watcher).
a_denial_with_a_watcher_that_hangs_says_what_is_up_test_() -> in_a_node_(watcher_hangs).
a_denial_waits_for_a_watcher_that_starts_again_test_() -> in_a_node_(watcher_comes).
a_link_that_nobody_has_ended_is_not_disconnected_test_() -> in_a_node_(not_disconnected).
