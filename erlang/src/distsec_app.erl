%% Starts the agent's processes at boot, from the guard: in a node that knows nothing of distsec
%% there is no application to start them. They hang on a process of their own, linked to nothing,
%% that holds the tables; if the supervisor gives up it starts another after a pause, and the
%% guard (verify_fun, cookies, policy) does not need any of them.
-module(distsec_app).

-export([boot/0, booted/0]).

-define(PAUSE_MS, 1000).

%% Returns when the tables are there, so that nothing is lost of what follows.
-spec boot() -> ok.
boot() ->
    {Pid, Reference} = spawn_monitor(fun hold/0),
    Pid ! {ready, self()},
    receive
        {Pid, ready} -> erlang:demonitor(Reference, [flush]), ok;
        {'DOWN', Reference, process, Pid, Why} -> erlang:error({distsec_boot, Why})
    end.

%% False also after init:restart/0, which ends all processes and keeps the persistent terms: mix
%% releases with configuration providers boot twice in one VM.
-spec booted() -> boolean().
booted() ->
    whereis(?MODULE) =/= undefined.

hold() ->
    true = register(?MODULE, self()),
    process_flag(trap_exit, true),
    ok = distsec_ring:new(),
    ok = distsec_links:new(),
    ok = distsec_attempts:new(),
    receive {ready, Boot} -> Boot ! {self(), ready} end,
    hold(start()).

%% Tries until it is there: the tables must not go because a process could not be started.
start() ->
    case distsec_sup:start_link() of
        {ok, Supervisor} -> Supervisor;
        _ -> receive after ?PAUSE_MS -> start() end
    end.

hold(Supervisor) ->
    receive
        {'EXIT', Supervisor, _} ->
            receive after ?PAUSE_MS -> ok end,
            hold(start());
        _ ->
            hold(Supervisor)
    end.
