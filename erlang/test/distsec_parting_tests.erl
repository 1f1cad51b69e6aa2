%% A link that is ended quietly, with a socket that is real and processes that stand for ssl's.
-module(distsec_parting_tests).
-include_lib("eunit/include/eunit.hrl").

-import(distsec_test_registry, [soon/2]).

-define(PEER, <<"x@h">>).
-define(HELD_MS, 1000). % distsec_parting's: sooner than that a quiet end closes no socket by itself
-define(PATIENCE_MS, 60000).

link() ->
    {ok, Listen} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}, binary, {active, false}]),
    {ok, Port} = inet:port(Listen),
    {ok, Peer} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    {ok, Socket} = gen_tcp:accept(Listen),
    Controller = spawn(fun forever/0),
    Test = self(),
    %% As the TLS receiver does it: takes in what comes, and ends when its controller does.
    Receiver = spawn(fun() ->
                             receive go -> ok end,
                             Monitor = monitor(process, Controller),
                             ok = inet:setopts(Socket, [{active, true}]),
                             receive_all(Test, Controller, Monitor)
                     end),
    ok = gen_tcp:controlling_process(Socket, Receiver),
    Receiver ! go,
    ok = gen_tcp:send(Peer, "before"),
    receive {took, <<"before">>} -> ok end,
    {Peer, Socket, Controller, Receiver}.

forever() ->
    receive never -> ok end.

%% What it takes in is delivered only while the link is there (erlang:dist_ctrl_put_data/2).
receive_all(Test, Controller, Monitor) ->
    receive
        {tcp, _, Bytes} ->
            _ = is_process_alive(Controller) andalso (Test ! {took, Bytes}),
            receive_all(Test, Controller, Monitor);
        {'DOWN', Monitor, _, _, _} -> ok
    end.

in_force(Generation, Denied) ->
    distsec_policy:put_in_force(
      #{generation => Generation, denied => Denied, rules => [], revoked => [], connect => none,
        peers => [#{name => ?PEER, identity => <<>>, phase => open, address => undefined,
                    port => undefined}]},
      <<>>, <<>>).

now_ms() ->
    erlang:monotonic_time(millisecond).

%% Since Began, which is a moment before the end of the link: a busy machine makes it more, never less.
closed_after(Peer, Began) ->
    {error, closed} = gen_tcp:recv(Peer, 0, ?PATIENCE_MS),
    now_ms() - Began.

with_patience(Test) ->
    {timeout, 2 * ?PATIENCE_MS div 1000, Test}.

%% The control: this is what the peer notices at once.
a_link_whose_controller_is_killed_closes_its_socket_test_() ->
    with_patience(fun() -> ?assert(soon(fun killed/0, ?HELD_MS)) end).

killed() ->
    {Peer, _, Controller, _} = link(),
    Began = now_ms(),
    exit(Controller, kill),
    closed_after(Peer, Began).

a_quiet_end_takes_nothing_more_in_and_closes_the_socket_a_second_later_test_() ->
    with_patience(fun() -> ?assert(soon(fun ended_quietly/0, 3000)) end).

ended_quietly() ->
    in_force(7, [?PEER]),
    {Peer, Socket, Controller, Receiver} = link(),
    Monitor = monitor(process, Controller),
    Began = now_ms(),
    ?assert(distsec_parting:quietly(?PEER, Controller, distsec_links:owner(Socket))),
    receive {'DOWN', Monitor, _, _, Why} -> ?assertEqual(disconnect, Why) end,
    ok = gen_tcp:send(Peer, "after"),
    Took = closed_after(Peer, Began),
    ?assert(Took >= ?HELD_MS),
    receive {took, More} -> error({took, More}) after 0 -> ok end,
    ?assertNot(is_process_alive(Receiver)),
    Took.

what_is_too_busy_to_end_is_killed_test_() ->
    with_patience(fun what_is_too_busy_to_end_is_killed/0).

what_is_too_busy_to_end_is_killed() ->
    in_force(7, [?PEER]),
    {Peer, Socket, _, _} = link(),
    Test = self(),
    Busy = spawn(fun() -> process_flag(trap_exit, true), Test ! ready, forever() end),
    receive ready -> ok end,
    Monitor = monitor(process, Busy),
    Began = now_ms(),
    ?assert(distsec_parting:quietly(?PEER, Busy, distsec_links:owner(Socket))),
    receive
        {'DOWN', Monitor, _, _, Why} -> ?assertEqual(killed, Why)
    after ?PATIENCE_MS -> error(alive)
    end,
    ?assert(closed_after(Peer, Began) >= ?HELD_MS).

a_peer_that_is_taken_up_again_sees_its_old_link_end_at_once_test_() ->
    with_patience(fun() -> ?assert(soon(fun taken_up_again/0, ?HELD_MS)) end).

%% A later policy about others changes nothing.
taken_up_again() ->
    in_force(7, [?PEER]),
    {Peer, Socket, Controller, _} = link(),
    Began = now_ms(),
    ?assert(distsec_parting:quietly(?PEER, Controller, distsec_links:owner(Socket))),
    in_force(8, [?PEER]),
    case gen_tcp:recv(Peer, 0, 200) of
        {error, timeout} ->
            in_force(9, []),
            closed_after(Peer, Began);
        {error, closed} -> % the test itself stood still until the hold was over
            Took = now_ms() - Began,
            ?assert(Took >= ?HELD_MS),
            Took
    end.

%% The peer is taken up again while the link still ends: one whose processes do not go for a while.
a_peer_that_is_taken_up_again_while_its_link_ends_sees_that_at_once_test_() ->
    with_patience(fun() -> ?assert(soon(fun taken_up_again_at_once/0, ?HELD_MS)) end).

taken_up_again_at_once() ->
    in_force(7, [?PEER]),
    {Peer, Socket, _, _} = link(),
    Test = self(),
    Busy = spawn(fun() -> process_flag(trap_exit, true), Test ! ready, forever() end),
    receive ready -> ok end,
    Began = now_ms(),
    ?assert(distsec_parting:quietly(?PEER, Busy, distsec_links:owner(Socket))),
    in_force(8, []),
    closed_after(Peer, Began).

a_link_of_which_too_little_is_known_is_left_to_others_test() ->
    ?assertNot(distsec_parting:quietly(?PEER, self(), undefined)),
    {_, Socket, Controller, _} = link(),
    gen_tcp:close(Socket),
    ?assertNot(distsec_parting:quietly(?PEER, Controller, distsec_links:owner(Socket))),
    ?assertNot(distsec_parting:quietly('nobody@nowhere')).

only_a_node_that_its_own_policy_denies_leaves_test() ->
    in_force(7, [?PEER]),
    ?assertNot(distsec_parting:leave_if_denied()),
    in_force(8, [atom_to_binary(node())]),
    ?assert(distsec_parting:leave_if_denied()).
