%% The watcher: nodeup and nodedown of visible and hidden nodes. Prevention stands before it, so
%% it should never find a link that the policy refuses; when it does, it ends the link until
%% nodedown and raises an alarm (a `violation`).
-module(distsec_watch).
-behaviour(gen_server).

-export([start_link/0, enforce/1, disconnect/2, tell_of_links/0, proven/1]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2]).

-define(SUBSCRIBE_EVERY_MS, 20).
-define(AUDIT_EVERY_MS, 1000).
-define(KICK_EVERY_MS, 2).
-define(SETTLE_EVERY_MS, 1).
-define(SETTLE_MS, 300).
-define(TELL_MS, 20).

%% `settling`: links that are up while net_kernel has not told yet with whom (see up/3), and the
%% monotonic time in milliseconds until which that is waited for.
-type state() :: #{subscribed := boolean(), kickers := #{node() => pid()},
                   settling := #{node() => integer()}}.

-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% Ends every session and link that the policy in force refuses, and waits for their nodedown.
%% Returns the peers that are still up at the deadline; if this process judges none (it hangs, or has to
%% start again), what is up is judged here.
-spec enforce(TimeoutMs :: pos_integer()) -> [binary()].
enforce(TimeoutMs) ->
    _ = distsec_parting:leave_if_denied(),
    distsec_links:end_sessions(fun(Session) -> element(1, decide(Session)) =:= deny end),
    Audited = audited(now_ms() + TimeoutMs div 4), % so that the link_down of each says why
    distsec_attempts:end_denied(fun decide/1),
    Deadline = now_ms() + TimeoutMs,
    case Audited orelse audited(Deadline) of
        true ->
            await_down(fun() -> [P || #{verdict := deny, peer := P} <- distsec_links:all()] end, Deadline);
        false ->
            denied_now()
    end.

audited(Deadline) ->
    Left = max(0, Deadline - now_ms()),
    try
        ok =:= gen_server:call(?MODULE, audit, Left)
    catch
        exit:_ when Left > 0 -> receive after 1 -> audited(Deadline) end;
        exit:_ -> false
    end.

denied_now() ->
    [atom_to_binary(Node, utf8) || Node <- nodes(connected),
                                   {Link, _} <- [distsec_links:describe(Node, node_type(Node))],
                                   element(1, decide(Link)) =:= deny].

now_ms() ->
    erlang:monotonic_time(millisecond).

%% Ends one link; the policy may let it come back.
-spec disconnect(binary(), TimeoutMs :: pos_integer()) -> ok | not_connected | still_up.
disconnect(Peer, TimeoutMs) ->
    case connected(Peer) of
        [] ->
            not_connected;
        [Node] ->
            gen_server:cast(?MODULE, {disconnect, Node}),
            Deadline = now_ms() + TimeoutMs,
            %% A link that is up may not be known yet, or have nobody to know it.
            Left = fun() -> connected(Peer) ++ [P || #{peer := P} <- distsec_links:all(), P =:= Peer] end,
            case await_down(Left, Deadline) of
                [] -> ok;
                _ -> still_up
            end
    end.

connected(Peer) ->
    [Node || Node <- nodes(connected), atom_to_binary(Node, utf8) =:= Peer].

%% Returns when every nodeup so far stands on the ring as an event: the carrier waits for that before it
%% delivers the first byte of a peer, whose first term could else take back that it was ever here. Bounded,
%% since no link may hang on this process.
-spec tell_of_links() -> ok.
tell_of_links() ->
    try gen_server:call(?MODULE, audit, ?TELL_MS) catch exit:_ -> ok end.

%% Both ends of the link with Name have proven themselves anew, and the carrier knows by what: so does
%% everybody, when this returns.
-spec proven(Name :: binary()) -> ok.
proven(Name) ->
    try gen_server:call(?MODULE, {proven, Name}) catch exit:_ -> ok end.

await_down(Left, Deadline) ->
    case {Left(), now_ms() < Deadline} of
        {[], _} -> [];
        {Peers, false} -> Peers;
        {_, true} -> receive after 1 -> await_down(Left, Deadline) end
    end.

%% ---- gen_server --------------------------------------------------------------------------------

-spec init([]) -> {ok, state(), {continue, subscribe}}.
init([]) ->
    process_flag(priority, high),
    {ok, #{subscribed => false, kickers => #{}, settling => #{}}, {continue, subscribe}}.

-spec handle_continue(subscribe, state()) -> {noreply, state()}.
handle_continue(subscribe, State) ->
    {noreply, subscribe(State)}.

%% Starts before net_kernel does; tries until it is there. Nodes that came up before the
%% subscription are audited like later ones, and links that a watcher before this one knew and that
%% ended, or were replaced, when there was none end here.
subscribe(State) ->
    try net_kernel:monitor_nodes(true, [{node_type, all}, nodedown_reason]) of
        ok ->
            erlang:send_after(?AUDIT_EVERY_MS, self(), audit),
            Unseen = [Node || Node <- distsec_links:known_nodes(), not distsec_links:is_current(Node)],
            audit(lists:foldl(fun unseen/2, State#{subscribed := true}, Unseen));
        _ ->
            again(State)
    catch
        exit:_ -> again(State)
    end.

again(State) ->
    erlang:send_after(?SUBSCRIBE_EVERY_MS, self(), subscribe),
    State.

-spec handle_call(audit | {proven, binary()}, gen_server:from(), state()) -> {reply, ok, state()}.
handle_call(audit, _From, State) ->
    {reply, ok, audit(State)};
handle_call({proven, Name}, _From, State) ->
    Known = [{Node, Link} || Node <- connected(Name), {ok, Link} <- [distsec_links:find(Node)]],
    lists:foreach(fun({Node, Link}) -> renew(Node, Link) end, Known),
    {reply, ok, audit(State)}.

-spec handle_cast({disconnect, node()}, state()) -> {noreply, state()}.
handle_cast({disconnect, Node}, State) ->
    {noreply, kick(Node, State)}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({Event, Node, _}, State)
  when Node =:= node(), Event =:= nodeup orelse Event =:= nodedown ->
    {noreply, State}; % this node itself, when the distribution starts
handle_info({nodeup, Node, Facts}, State) ->
    case distsec_links:is_current(Node) of
        true -> {noreply, State}; % an audit was faster than this message
        false -> {noreply, up(Node, proplists:get_value(node_type, Facts, visible), unseen(Node, State))}
    end;
handle_info({nodedown, Node, Facts}, State) ->
    {noreply, down(Node, proplists:get_value(nodedown_reason, Facts), State)};
handle_info({details, Node, Since, Details}, State) ->
    %% The link may have gone or come again meanwhile.
    case distsec_links:find(Node) of
        {ok, #{since_ms := Since} = Link} -> announce(Node, maps:merge(Link, Details));
        _ -> ok
    end,
    {noreply, State};
handle_info({settle, Node, NodeType}, #{settling := Settling} = State) ->
    case is_map_key(Node, Settling) of
        true -> {noreply, up(Node, NodeType, State)};
        false -> {noreply, State}
    end;
handle_info(subscribe, State) ->
    {noreply, subscribe(State)};
handle_info(audit, State) ->
    erlang:send_after(?AUDIT_EVERY_MS, self(), audit),
    distsec_clock:look(),
    distsec_links:sweep(),
    look_ahead(),
    {noreply, audit(State)};
handle_info(ended, State) ->
    {noreply, audit(State)};
handle_info({'DOWN', _, process, Pid, _}, #{kickers := Kickers} = State) ->
    {noreply, State#{kickers := maps:filter(fun(_, P) -> P =/= Pid end, Kickers)}};
handle_info(_, State) ->
    {noreply, State}.

%% ---- links -------------------------------------------------------------------------------------

%% The emulator says nodeup before net_kernel has the address of the link in its table
%% (dist_util:connection/1: do_setnode comes before mark_nodeup), so at first it may not be known
%% which session this is. Who claims a listed name is given a moment; who does not is ended at once.
up(Node, NodeType, #{settling := Settling} = State) ->
    {Link, Session} = distsec_links:describe(Node, NodeType),
    Now = erlang:monotonic_time(millisecond),
    case Session =:= undefined andalso may_settle(Link) of
        true when map_get(Node, Settling) > Now ->
            settle(Node, NodeType, State);
        true when not is_map_key(Node, Settling) ->
            settle(Node, NodeType, State#{settling := Settling#{Node => Now + ?SETTLE_MS}});
        _ ->
            settled(Node, Link, Session, State#{settling := maps:remove(Node, Settling)})
    end.

settle(Node, NodeType, State) ->
    erlang:send_after(?SETTLE_EVERY_MS, self(), {settle, Node, NodeType}),
    State.

%% Whether an identity could still make this link one that is allowed; or, with cookies only,
%% whether its address is still to come.
may_settle(#{identity := undefined, peer := Peer, address := Address} = Link) ->
    case decide(Link) of
        {deny, no_identity, _} -> distsec_policy:lists(Peer);
        {allow, _} -> Address =:= undefined;
        _ -> false
    end;
may_settle(_) ->
    false.

settled(Node, Link0, Session, State) ->
    Started = erlang:monotonic_time(),
    Decision = decide(Link0),
    count(Link0, Decision, erlang:monotonic_time() - Started),
    Link = judged(Link0, Decision),
    distsec_links:put(Node, Link),
    case Decision of
        {allow, _} ->
            details(Node, Link, Session),
            State;
        {deny, _, _} ->
            %% One direction for the event and the count, or they would be counted as two.
            distsec_count:refusal(way(Link), unlisted_link),
            distsec_report:critical(violation, #{link => distsec_links:shown(Link#{direction := way(Link)})}),
            kick(Node, State)
    end.

%% A link is announced when its details are there, or cannot be had; the carrier had them before nodeup.
details(Node, #{cipher := Cipher} = Link, _Session) when Cipher =/= undefined ->
    announce(Node, Link);
details(Node, #{since_ms := Since}, Session) ->
    Watch = self(),
    _ = spawn(fun() -> Watch ! {details, Node, Since, distsec_links:tls_details(Session)} end),
    ok.

announce(Node, Link) ->
    distsec_links:put(Node, Link),
    distsec_report:critical(link_up, #{link => distsec_links:shown(Link)}).

%% The link goes on with what its peer has shown last.
renew(Node, Link) ->
    case distsec_links:describe(Node, node_type(Node)) of
        {#{serial := Serial} = Shown, Session} when Session =/= undefined ->
            Renewed = maps:merge(Link, maps:with([identity, identities, names, usages, issuer, serial, not_after],
                                                 Shown)),
            distsec_links:put(Node, Renewed),
            _ = Serial =:= maps:get(serial, Link)
                orelse distsec_report:critical(link_renewed, #{link => distsec_links:shown(Renewed)}),
            ok;
        _ -> ok
    end.

%% A link whose proof ends before the next audit is looked at in that moment.
look_ahead() ->
    Now = os:system_time(millisecond),
    Ends = [(NotAfter + 1) * 1000 - Now || #{not_after := NotAfter} <- distsec_links:all(), is_integer(NotAfter)],
    case [Left || Left <- Ends, Left > 0, Left < ?AUDIT_EVERY_MS] of
        [] -> ok;
        Soon -> _ = erlang:send_after(lists:min(Soon), self(), ended), ok
    end.

%% The end of a link that was known, if nobody has seen it.
unseen(Node, State) ->
    case distsec_links:find(Node) of
        {ok, _} -> down(Node, unseen, State);
        error -> State
    end.

down(Node, Why, #{settling := Settling} = State) ->
    case distsec_links:take(Node) of
        {ok, Link} ->
            distsec_report:critical(link_down, #{link => distsec_links:shown(at_its_end(Link)),
                                                 detail => distsec_report:text(Why)}),
            distsec_connect:lost(maps:get(peer, Link));
        error ->
            ok
    end,
    State#{settling := maps:remove(Node, Settling)}.

%% Of a link whose proof has run out that is the reason also where others were faster: who lost it first has
%% `global` tell the other nodes, and theirs ends it (prevent_overlapping_partitions).
at_its_end(#{verdict := allow} = Link) ->
    case decide(Link) of
        {deny, expired, _} = Decision -> judged(Link, Decision);
        _ -> Link
    end;
at_its_end(Link) ->
    Link.

%% Every link that is up, against the policy that is in force now.
audit(#{subscribed := false} = State) ->
    State;
audit(State) ->
    lists:foldl(fun audit_node/2, State, nodes(connected)).

audit_node(Node, #{settling := Settling} = State) ->
    case distsec_links:find(Node) of
        error when is_map_key(Node, Settling) ->
            case distsec_policy:lists(atom_to_binary(Node, utf8)) of
                true -> State;
                false -> up(Node, node_type(Node), State) % the policy has changed meanwhile
            end;
        error ->
            up(Node, node_type(Node), State);
        {ok, #{verdict := Verdict} = Link} ->
            #{policy_generation := Generation} = distsec_policy:summary(),
            case {Verdict, decide(Link)} of
                {allow, {allow, _}} ->
                    State;
                {deny, _} ->
                    kick(Node, State);
                {allow, {deny, _, _} = Decision} ->
                    %% The policy changed, or the certificate's time ran out: no violation, but
                    %% the link ends. Its nodedown is the event.
                    distsec_links:put(Node, judged(Link, Decision)),
                    distsec_connect:ejected(),
                    kick(Node, {quietly, Generation}, State)
            end
    end.

node_type(Node) ->
    case lists:member(Node, nodes(hidden)) of
        true -> hidden;
        false -> visible
    end.

decide(#{identity := Identity, direction := Direction} = Shown) ->
    distsec_policy:decide(
      #{direction => case Direction of undefined -> in; _ -> Direction end,
        identities => maps:get(identities, Shown, [Identity || Identity =/= undefined]),
        names => maps:get(names, Shown, []), usages => maps:get(usages, Shown, undefined),
        node => distsec_guard:node_name(),
        serial => maps:get(serial, Shown), not_after => maps:get(not_after, Shown),
        name => maps:get(peer, Shown, maps:get(name, Shown, undefined)), hidden => maps:get(hidden, Shown, undefined),
        now => distsec_clock:now()},
      distsec_policy:in_force()).

judged(Link, {allow, Rule}) ->
    Link#{verdict => allow, reason => undefined, rule => Rule};
judged(Link, {deny, Reason, Rule}) ->
    Link#{verdict => deny, reason => Reason, rule => Rule}.

way(#{direction := out}) -> out;
way(_) -> in.

count(#{direction := out}, Decision, Took) ->
    distsec_count:check(link_out, element(1, Decision), Took);
count(_, Decision, Took) ->
    distsec_count:check(link_in, element(1, Decision), Took).

%% erlang:disconnect_node/1 may answer false, with the peer still connected: at nodeup, because net_kernel has
%% not marked the connection up yet, and of a link that it lost sight of (distsec_attempts:orphan/1) always.
%% So it is done without net_kernel then, as that does it, and again until the node is down.
kick(Node, State) ->
    kick(Node, openly, State).

kick(Node, How, #{kickers := Kickers} = State) ->
    case Kickers of
        #{Node := _} ->
            State;
        _ ->
            {Pid, _} = spawn_opt(fun() -> kick_until_down(Node, How) end, [monitor, {priority, max}]),
            State#{kickers := Kickers#{Node => Pid}}
    end.

kick_until_down(Node, How) ->
    _ = quietly(How, Node) orelse erlang:disconnect_node(Node) orelse distsec_links:cut(Node),
    case lists:member(Node, nodes(connected)) of
        true -> receive after ?KICK_EVERY_MS -> kick_until_down(Node, openly) end;
        false -> ok
    end.

quietly({quietly, Generation}, Node) -> distsec_parting:quietly(Node, Generation);
quietly(openly, _) -> false.
