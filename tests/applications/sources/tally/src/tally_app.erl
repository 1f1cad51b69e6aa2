-module(tally_app).
-behaviour(application).
-behaviour(supervisor).

-export([start/2, stop/1, init/1]).

start(_Type, []) ->
    supervisor:start_link(?MODULE, []).

stop(_) ->
    ok.

init([]) ->
    {ok, {#{}, [#{id => tally, start => {tally, start_link, []}}]}}.
