%% In the VM of an application's tool (`distsec exec`, distsec_guard's `kind => tool`): a hidden client of
%% one node and of those that this one is linked with, listening to nobody, whatever it calls itself.
-module(distsec_tool).

-export([cookies/0, others_first/1]).

-define(OTHERS_MS, 3000).

%% One that does not listen is not asked for a port, which is when nodes set theirs. Called in net_kernel
%% before the first handshake, by whichever carrier.
-spec cookies() -> ok.
cookies() ->
    case distsec_guard:kind() of
        tool -> distsec_cookies:install();
        _ -> ok
    end.

%% Before the node is dialled that the tool is for, all others are: what a tool asks one node for, others
%% may answer (`rabbitmqctl list_queues`), and as it listens to nobody, they could not. A node that does not
%% answer delays it by a few seconds.
-spec others_first(node()) -> ok.
others_first(Node) ->
    case distsec_guard:kind() of
        tool ->
            #{target := Target} = distsec_guard:guard(),
            case atom_to_binary(Node, utf8) of
                Target -> dial_others(Target);
                _ -> ok
            end;
        _ ->
            ok
    end.

dial_others(Target) ->
    Names = [Name || #{name := Name} <- distsec_policy:peers(distsec_policy:in_force()), Name =/= Target],
    %% Names of the policy that the orchestrator wrote: a bounded set of atoms.
    Dialled = [spawn_monitor(fun() -> net_kernel:connect_node(binary_to_atom(Name, utf8)) end)
               || Name <- Names],
    Timer = erlang:start_timer(?OTHERS_MS, self(), others),
    await([Reference || {_, Reference} <- Dialled], Timer).

await([], Timer) ->
    _ = erlang:cancel_timer(Timer),
    receive {timeout, Timer, others} -> ok after 0 -> ok end;
await([Reference | Left], Timer) ->
    receive
        {'DOWN', Reference, process, _, _} -> await(Left, Timer);
        {timeout, Timer, others} -> lists:foreach(fun(R) -> demonitor(R, [flush]) end, [Reference | Left])
    end.
