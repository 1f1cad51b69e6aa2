%% Counts, in every node of the cluster.
-module(tally).
-behaviour(gen_server).

-export([start_link/0, add/1, value/0]).
-export([init/1, handle_call/3, handle_cast/2]).

start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

add(Number) ->
    {_, []} = gen_server:multi_call(?MODULE, {add, Number}),
    ok.

value() ->
    gen_server:call(?MODULE, value).

init([]) ->
    {ok, 0}.

handle_call({add, Number}, _From, Sum) ->
    {reply, ok, Sum + Number};
handle_call(value, _From, Sum) ->
    {reply, Sum, Sum}.

handle_cast(_, Sum) ->
    {noreply, Sum}.
