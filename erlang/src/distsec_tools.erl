%% The applications' tools that the orchestrator has announced to this node (`distsec exec`), each by the
%% identity of a certificate that was issued for one run of it. To the gates they are CLI rules in front
%% of the policy's own: hidden, inbound. Unlike a shell (distsec_shells) a tool makes up its own node names,
%% and may link more than once: a script runs it again and again, or it asks until something is so.
%%
%% It is forgotten when the orchestrator says that it has ended, and by itself when its time is up.
-module(distsec_tools).
-behaviour(gen_server).

-export([new/0, start_link/0, admit/3, ended/1, rules/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(TABLE, distsec_tools).
-define(MAX_TOOLS, 64).
%% Names that one run of a tool has up at a time: a script may start several.
-define(MAX_LIVE, 8).
-define(CALL_MS, 5000).

%% The table belongs to the caller. A row: identity, pattern of its names, until when (monotonic ms).
-spec new() -> ok.
new() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, set, {read_concurrency, true}]),
    ok.

-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% From now on, and for Seconds, whoever shows Identity may come under any name that Pattern covers.
%% Saying it again sets the time anew.
-spec admit(Identity :: binary(), Pattern :: binary(), Seconds :: pos_integer()) -> ok | {error, too_many}.
admit(Identity, Pattern, Seconds) ->
    gen_server:call(?MODULE, {admit, Identity, Pattern, Seconds}, ?CALL_MS).

%% Nobody is admitted with Identity any more. Links that are up are the caller's to end.
-spec ended(Identity :: binary()) -> ok.
ended(Identity) ->
    true = ets:delete(?TABLE, Identity), % at once, whatever the process is at
    gen_server:cast(?MODULE, {ended, Identity}). % behind an announcement that it has not come to yet

%% What the gates add to the policy in force. One that is missing (its table is not there) admits nobody.
-spec rules() -> [distsec_policy:rule()].
rules() ->
    case ets:whereis(?TABLE) of
        undefined -> [];
        Table -> [#{pattern => Pattern, identity => Identity, max_live => ?MAX_LIVE}
                  || {Identity, Pattern, _} <- ets:tab2list(Table)]
    end.

%% ---- the process that forgets them --------------------------------------------------------------

-spec init([]) -> {ok, []}.
init([]) ->
    Now = now_ms(),
    _ = ets:select_delete(?TABLE, [{{'_', '_', '$1'}, [{'=<', '$1', Now}], [true]}]),
    lists:foreach(fun({Identity, _, Until}) -> forget_at(Identity, Until) end, ets:tab2list(?TABLE)),
    {ok, []}.

-spec handle_call(term(), gen_server:from(), []) -> {reply, term(), []}.
handle_call({admit, Identity, Pattern, Seconds}, _From, State) ->
    case ets:member(?TABLE, Identity) orelse ets:info(?TABLE, size) < ?MAX_TOOLS of
        true ->
            Until = now_ms() + Seconds * 1000,
            true = ets:insert(?TABLE, {Identity, Pattern, Until}),
            forget_at(Identity, Until),
            {reply, ok, State};
        false ->
            {reply, {error, too_many}, State}
    end;
handle_call(_, _From, State) ->
    {reply, ok, State}.

-spec handle_cast(term(), []) -> {noreply, []}.
handle_cast({ended, Identity}, State) ->
    ets:delete(?TABLE, Identity),
    {noreply, State};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), []) -> {noreply, []}.
handle_info({late, Identity, Until}, State) ->
    true = ets:match_delete(?TABLE, {Identity, '_', Until}), % not one that was given more time
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.

forget_at(Identity, Until) ->
    _ = erlang:send_after(max(0, Until - now_ms()), self(), {late, Identity, Until}),
    ok.

now_ms() ->
    erlang:monotonic_time(millisecond).
