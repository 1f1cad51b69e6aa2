%% Starts the agent's processes at boot, from the guard: in a node that knows nothing of distsec
%% there is no application to start them. They hang on a process of their own, linked to nothing,
%% that holds the tables; if a supervisor gives up it starts another after a pause, and the
%% guard (verify_fun, cookies, policy) does not need any of them.
-module(distsec_app).

-export([boot/0, booted/0]).

-define(PAUSE_MS, 1000).

%% Returns when the tables are there, so that nothing is lost of what follows.
-spec boot() -> ok.
boot() ->
    ok = hold_code(),
    {Pid, Reference} = spawn_monitor(fun hold/0),
    Pid ! {ready, self()},
    receive
        {Pid, ready} -> erlang:demonitor(Reference, [flush]), ok;
        {'DOWN', Reference, process, Pid, Why} -> erlang:error({distsec_boot, Why})
    end.

%% False also after init:restart/0, which ends all processes and erases the persistent terms: mix
%% releases with configuration providers boot twice in one VM.
-spec booted() -> boolean().
booted() ->
    whereis(?MODULE) =/= undefined.

%% Loads all of the agent's modules, and none of them a second time: a link runs in code of the
%% carrier, and ends when that is replaced twice. So neither c:l/1 nor an upgrade of a release nor
%% what an upgrade of distsec put on the disk meanwhile replaces any; a restart of the node does.
hold_code() ->
    Directory = filename:dirname(code:which(?MODULE)),
    {ok, Files} = erl_prim_loader:list_dir(Directory),
    Modules = [list_to_atom(filename:rootname(File))
               || File <- Files, lists:prefix("distsec_", File), lists:suffix(".beam", File)],
    ok = code:ensure_modules_loaded(Modules),
    ok = code:stick_dir(Directory).

hold() ->
    true = register(?MODULE, self()),
    process_flag(trap_exit, true),
    ok = distsec_ring:new(),
    ok = distsec_links:new(),
    ok = distsec_attempts:new(),
    ok = distsec_futile:new(),
    ok = distsec_shells:new(),
    ok = distsec_tools:new(),
    receive {ready, Boot} -> Boot ! {self(), ready} end,
    hold(start(agent, start(guard, #{}))).

%% Tried again until it is there, with pauses in which the other part is looked after: the tables must not
%% go because a process could not be started.
start(Part, Supervisors) ->
    case distsec_sup:start_link(Part) of
        {ok, Supervisor} -> Supervisors#{Supervisor => Part};
        _ -> later(Part, Supervisors)
    end.

later(Part, Supervisors) ->
    erlang:send_after(?PAUSE_MS, self(), {start, Part}),
    Supervisors.

hold(Supervisors) ->
    receive
        {'EXIT', Supervisor, _} when is_map_key(Supervisor, Supervisors) ->
            {Part, Left} = maps:take(Supervisor, Supervisors),
            hold(later(Part, Left));
        {start, Part} ->
            hold(start(Part, Supervisors));
        _ ->
            hold(Supervisors)
    end.
