%% The agent's processes. Each can start again without the others.
-module(distsec_sup).
-behaviour(supervisor).

-export([start_link/0, init/1]).

-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    {ok, {#{strategy => one_for_one, intensity => 10, period => 10},
          [#{id => Module, start => {Module, start_link, []}, shutdown => 1000}
           || Module <- [distsec_attempts, distsec_watch, distsec_connect, distsec_agent]]}}.
