%% The agent's processes, under two supervisors: what admission needs, and what talks to the orchestrator.
%% Each process can start again without the others, and nothing that happens to the second kind ends one
%% of the first.
-module(distsec_sup).
-behaviour(supervisor).

-export([start_link/1, init/1]).

-type part() :: guard | agent.

-spec start_link(part()) -> {ok, pid()} | ignore | {error, term()}.
start_link(Part) ->
    supervisor:start_link({local, name(Part)}, ?MODULE, Part).

name(guard) -> distsec_guard_sup;
name(agent) -> ?MODULE.

-spec init(part()) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init(Part) ->
    {ok, {#{strategy => one_for_one, intensity => 10, period => 10},
          [#{id => Module, start => {Module, start_link, []}, shutdown => 1000}
           || Module <- children(Part, distsec_guard:guard())]}}.

children(guard, _) ->
    [distsec_attempts, distsec_watch, distsec_renewal];
children(agent, #{kind := _}) ->
    []; % the VM of a shell or a tool has no orchestrator of its own to talk to, and dials by itself
children(agent, _) ->
    [distsec_connect, distsec_registrar, distsec_shells, distsec_tools, distsec_agent].
