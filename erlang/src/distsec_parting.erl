%% Ends a link so that its peer does not notice for a moment, and has this node leave when it is the
%% one that was denied. Both keep an ejection from splitting pairs that are to stay.
%%
%% When a link ends, `global` at either end tells every node it knows, and each of those cuts its
%% own link with the node that was lost (prevent_overlapping_partitions; lost_connection in
%% global.erl, OTP 25 to 29). Of an ejection that is right in one direction only: A tells B that X
%% is lost, and B cuts X. But X, which sees A end its link while B's is still up, tells B that A is
%% lost, and B cuts A. So X must not notice before B is done: here the link ends at once and for
%% good, nothing that X sent is delivered any more, yet its socket stays open and silent. B needs no
%% order for its part: what global says here makes it, and X, end the other links in order.
-module(distsec_parting).

-export([quietly/1, quietly/2, quietly/3, leave_if_denied/0]).

%% Nodes of one cluster carry a denial out within tens of milliseconds of each other (two cores, ten
%% nodes: 30, at most 320).
-define(HELD_MS, 1000).
-define(LOOK_EVERY_MS, 5).
-define(LEAVE_MS, 500).
-define(END_MS, 3).
-define(CLOSE_MS, 200).

%% Ends the link with Node. False when its processes are not known (no TLS, or not fully up): end it
%% by other means then.
-spec quietly(node()) -> boolean().
quietly(Node) ->
    quietly(Node, generation()).

%% Generation is that of the policy which ends it, where a later one may be in force already.
-spec quietly(node(), Generation :: non_neg_integer()) -> boolean().
quietly(Node, Generation) ->
    case lists:keyfind(Node, 1, erlang:system_info(dist_ctrl)) of
        {_, Controller} when is_pid(Controller) ->
            quietly(atom_to_binary(Node, utf8), Controller, distsec_links:receiver(Node), Generation);
        _ ->
            false
    end.

%% Controller is what the emulator takes as the link, Receiver the process that owns its socket
%% (distsec_links:receiver/1).
-spec quietly(Peer :: binary(), Controller :: pid(), Receiver :: pid() | undefined) -> boolean().
quietly(Peer, Controller, Receiver) ->
    quietly(Peer, Controller, Receiver, generation()).

quietly(Peer, Controller, Receiver, Generation) when is_pid(Receiver) ->
    _ = spawn_opt(fun() -> hold(Peer, Controller, Receiver, Generation) end, [{priority, max}]),
    true;
quietly(_, _, undefined, _) ->
    false.

generation() ->
    #{policy_generation := Generation} = distsec_policy:summary(),
    Generation.

%% Suspended, the receiver takes nothing in and does not see its controller end, so the socket
%% stays. It is not waited for (a receiver may be busy): its signal is sent before the other.
%% Resumed, here or by the end of this process, it closes the socket; what it has still read it
%% cannot deliver, since the link is gone.
hold(Peer, Controller, Receiver, Generation) ->
    _ = try erlang:suspend_process(Receiver, [asynchronous])
        catch error:badarg -> false % it has ended
        end,
    ended(Controller, disconnect, ?END_MS),
    process_flag(priority, normal),
    release_when_due(Peer, Generation, erlang:monotonic_time(millisecond) + ?HELD_MS),
    _ = try erlang:resume_process(Receiver) catch error:badarg -> false end,
    ended(Receiver, shutdown, ?CLOSE_MS).

%% Asked first, so that ssl ends what belongs to it in order and reports no crash; killed if it is
%% too busy for that, as with a peer that takes nothing off its socket.
ended(Pid, Reason, TimeoutMs) ->
    Monitor = monitor(process, Pid),
    exit(Pid, Reason),
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    after TimeoutMs -> exit(Pid, kill)
    end.

%% Earlier if a later policy takes the peer up again: it must see its old links gone before it has
%% any new one. An allow has two phases, so it is listed, and told of here, before anybody admits
%% it.
release_when_due(Peer, Generation, Deadline) ->
    case (generation() =/= Generation andalso distsec_policy:lists(Peer))
        orelse erlang:monotonic_time(millisecond) >= Deadline of
        true -> ok;
        false -> receive after ?LOOK_EVERY_MS -> release_when_due(Peer, Generation, Deadline) end
    end.

%% A node that its own policy denies leaves as global(3erl) asks, disconnect/0: its global tells
%% nobody of the links that it loses. True when it is denied, and then it has left, or tried for
%% LEAVE_MS; the others keep it out whatever it does.
-spec leave_if_denied() -> boolean().
leave_if_denied() ->
    case distsec_policy:in_force() of
        #{denied := Denied} ->
            lists:member(atom_to_binary(node(), utf8), Denied) andalso leave();
        undefined ->
            false
    end.

leave() ->
    _ = nodes() =/= [] andalso
        begin
            {Pid, Monitor} = spawn_monitor(fun() -> global:disconnect() end),
            receive
                {'DOWN', Monitor, process, Pid, _} -> ok
            after ?LEAVE_MS ->
                    demonitor(Monitor, [flush]),
                    exit(Pid, kill)
            end
        end,
    true.
