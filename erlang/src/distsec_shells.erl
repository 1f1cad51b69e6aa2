%% The shells that the orchestrator has announced to this node (`distsec shell`), each by its exact
%% name and the identity of a certificate that was issued for it alone. To the gates they are CLI
%% rules in front of the policy's own: hidden, inbound.
%%
%% A shell attaches once: it is forgotten when its link goes down, when it has not attached in time,
%% or when the orchestrator says that it has ended. So the certificate of one that has ended admits
%% nobody, whether the orchestrator is there or not.
-module(distsec_shells).
-behaviour(gen_server).

-export([new/0, start_link/0, admit/3, ended/1, rules/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(TABLE, distsec_shells).
-define(MAX_SHELLS, 64).
-define(CALL_MS, 5000).

-type state() :: #{watching := boolean()}.

%% The table belongs to the caller.
-spec new() -> ok.
new() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, set, {read_concurrency, true}]),
    ok.

-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% From now on, and for Seconds if it does not attach, the shell Name may.
-spec admit(binary(), binary(), pos_integer()) -> ok | {error, too_many | in_use}.
admit(Name, Identity, Seconds) ->
    gen_server:call(?MODULE, {admit, Name, Identity, Seconds}, ?CALL_MS).

%% Nobody is admitted as Name any more. A link that is up is the caller's to end.
-spec ended(binary()) -> ok.
ended(Name) ->
    true = ets:delete(?TABLE, Name), % at once, whatever the process is at
    gen_server:cast(?MODULE, {ended, Name}). % behind an announcement that it has not come to yet

%% What the gates add to the policy in force. One that is missing (its table is not there) admits
%% nobody.
-spec rules() -> [distsec_policy:rule()].
rules() ->
    case ets:whereis(?TABLE) of
        undefined -> [];
        Table -> [#{pattern => Name, identity => Identity, max_live => 1}
                  || {Name, Identity, _, _} <- ets:tab2list(Table)]
    end.

%% ---- the process that forgets them --------------------------------------------------------------

%% In the table: name, identity, deadline, and whether its own link has been seen. One that is up stays; of
%% the others it is not known for how long they may still attach.
-spec init([]) -> {ok, state()}.
init([]) ->
    Watching = watch(ets:info(?TABLE, size) > 0, false),
    lists:foreach(fun({Name, _, _, _}) -> stays(Name) end, ets:tab2list(?TABLE)),
    {ok, #{watching => Watching}}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, term(), state()}.
handle_call({admit, Name, Identity, Seconds}, _From, #{watching := Watching} = State) ->
    Next = State#{watching := watch(true, Watching)},
    case {ets:lookup(?TABLE, Name), ets:info(?TABLE, size)} of
        {[_], _} ->
            {reply, {error, in_use}, Next};
        {[], Size} when Size >= ?MAX_SHELLS ->
            {reply, {error, too_many}, Next};
        {[], _} ->
            %% Of several shells in a row under one name each has a deadline of its own.
            Deadline = make_ref(),
            true = ets:insert(?TABLE, {Name, Identity, Deadline, false}),
            erlang:send_after(Seconds * 1000, self(), {late, Name, Deadline}),
            {reply, ok, Next}
    end;
handle_call(_, _From, State) ->
    {reply, ok, State}.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast({ended, Name}, State) ->
    ets:delete(?TABLE, Name),
    {noreply, State};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({late, Name, Deadline}, State) ->
    case ets:lookup(?TABLE, Name) of
        [{Name, _, Deadline, _}] -> stays(Name);
        _ -> true % it has ended, and perhaps another has its name
    end,
    {noreply, State};
handle_info({nodeup, Node, _}, State) ->
    seen(atom_to_binary(Node, utf8)),
    {noreply, State};
%% The link of one that has ended may go down after another was announced by its name, which stays.
handle_info({nodedown, Node, _}, State) ->
    Name = atom_to_binary(Node, utf8),
    _ = ets:match_delete(?TABLE, {Name, '_', '_', true}),
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.

%% Not before it is needed: at boot there is no net_kernel yet.
watch(true, false) ->
    ok =:= net_kernel:monitor_nodes(true, [{node_type, hidden}]);
watch(_, Watching) ->
    Watching.

stays(Name) ->
    case is_up(Name) of
        true -> seen(Name);
        false -> ets:delete(?TABLE, Name)
    end.

seen(Name) ->
    ets:update_element(?TABLE, Name, {4, true}).

is_up(Name) ->
    lists:any(fun(Node) -> atom_to_binary(Node, utf8) =:= Name end, nodes(hidden)).
