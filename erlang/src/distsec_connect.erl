%% Dials the peers that the policy lists, each on its own with its own back-off, so that one that is
%% down delays nobody (`connect = "mesh"`).
%%
%% With `none` it dials nobody, but for the repair after an ejection: where overlapping-partition
%% prevention of global(3erl) has cut a pair that was to stay (distsec_parting says how), whoever
%% dialled at first may not know that it should again. So a pair whose link went down within seconds
%% of an ejection, and which the policy still admits, is dialled until it is up again, ten seconds
%% at most. A pair that had no link then gets none.
-module(distsec_connect).
-behaviour(gen_server).

-export([start_link/0, refresh/0, lost/1, ejected/0, due/4, chosen/3, wanted/4, ejects/2,
         admitted_itself/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(TICK_MS, 100).
-define(FIRST_BACKOFF_MS, 250).
-define(LONGEST_BACKOFF_MS, 10000).
%% Of a pair whose link was lost. Not in the same moment: the peer may be on its way out, and the
%% policy that says so on its way here. The greater name begins later, should the other not do it.
-define(LOST_BACKOFF_MS, 100).
-define(LOST_FIRST_MS, 50).
-define(LOST_SECOND_MS, 300).
%% What reaches one node reaches the others within about this.
-define(SETTLE_MS, 100).
%% Handshakes are begun a few at a time; one that has not come through in a second waits for a peer
%% that does not answer, and holds nobody else up.
-define(AT_ONCE, 4).
-define(WAITING_MS, 1000).
%% A loss counts as one of an ejection when it is at most so much older (this is told of an ejection
%% when the node's own part is done, distsec_command: 4 s at most) or younger; it is repaired for so
%% long.
-define(LOST_BEFORE_MS, 5000).
-define(LOST_AFTER_MS, 3000).
-define(REPAIR_MS, 10000).

-type attempt() :: #{next_ms := integer(), backoff_ms := pos_integer()}.
-type losses() :: #{Peer :: binary() => Since :: integer()}.
-type state() :: #{attempts := #{binary() => attempt()}, lost := losses(),
                   ejected_ms := integer() | undefined, settled_ms := integer(),
                   policy := distsec_policy:policy() | undefined,
                   dialling := #{reference() => {binary(), integer()}}}.

-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The policy changed: whom it lists now is dialled without waiting for a back-off, but not before
%% the others have had the time to put it in force as well.
-spec refresh() -> ok.
refresh() ->
    gen_server:cast(?MODULE, refresh).

%% A link went down: its peer is dialled again soon.
-spec lost(binary()) -> ok.
lost(Peer) ->
    gen_server:cast(?MODULE, {lost, Peer}).

%% A link was ended that the policy no longer admits, without a change of the policy.
-spec ejected() -> ok.
ejected() ->
    gen_server:cast(?MODULE, ejected).

-spec init([]) -> {ok, state()}.
init([]) ->
    erlang:send_after(?TICK_MS, self(), tick),
    {ok, #{attempts => #{}, lost => #{}, ejected_ms => undefined, settled_ms => now_ms(),
           policy => distsec_policy:in_force(), dialling => #{}}}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, ok, state()}.
handle_call(_, _From, State) ->
    {reply, ok, State}.

-spec handle_cast(refresh | ejected | {lost, binary()}, state()) -> {noreply, state()}.
handle_cast(refresh, #{attempts := Attempts, lost := Lost, policy := Before} = State) ->
    case distsec_policy:in_force() of
        Before ->
            {noreply, State}; % the orchestrator makes sure
        Policy ->
            Next = State#{policy := Policy, settled_ms := now_ms() + ?SETTLE_MS,
                          attempts := maps:with(maps:keys(Lost), Attempts)},
            case ejects(Before, Policy) of
                true -> handle_cast(ejected, Next);
                false -> {noreply, Next}
            end
    end;
handle_cast(ejected, State) ->
    {noreply, State#{ejected_ms := now_ms()}};
handle_cast({lost, Peer}, State) ->
    %% Not the names that a rule admits: those are nobody to dial, and there is no end of them.
    case distsec_policy:peer(Peer, distsec_policy:in_force()) of
        {ok, _} -> {noreply, lost(Peer, now_ms(), State)};
        error -> {noreply, State}
    end.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info(tick, State) ->
    erlang:send_after(?TICK_MS, self(), tick),
    {noreply, dial(forget(State))};
handle_info(dial, State) ->
    {noreply, dial(State)};
handle_info({'DOWN', Reference, process, _, Why}, #{dialling := Dialling} = State) ->
    case maps:take(Reference, Dialling) of
        {{Peer, _}, Left} -> {noreply, dial(ended(Peer, Why, State#{dialling := Left}))};
        error -> {noreply, State}
    end;
handle_info(_, State) ->
    {noreply, State}.

lost(Peer, Now, #{attempts := Attempts, lost := Lost} = State) ->
    Wait = case own_name() > Peer of true -> ?LOST_SECOND_MS; false -> ?LOST_FIRST_MS end,
    _ = erlang:send_after(Wait, self(), dial),
    Again = #{next_ms => Now + Wait, backoff_ms => ?LOST_BACKOFF_MS},
    State#{attempts := Attempts#{Peer => Again}, lost := Lost#{Peer => Now}}.

%% ---- whom ---------------------------------------------------------------------------------------

%% Whether After ends what Before admitted: a name that is no longer open, a certificate or an
%% identity revoked.
-spec ejects(distsec_policy:policy() | undefined, distsec_policy:policy() | undefined) -> boolean().
ejects(#{revoked := RevokedBefore} = Before, #{revoked := Revoked} = After) ->
    admitted(Before) -- admitted(After) =/= [] orelse Revoked -- RevokedBefore =/= []
        orelse distsec_policy:revoked_identities(After)
            -- distsec_policy:revoked_identities(Before) =/= [];
ejects(_, _) ->
    false.

admitted(Policy) ->
    [Name || #{name := Name} <- distsec_policy:open(Policy)].

%% Whether others let this node in. One that is denied, or not admitted by all of them yet, dials
%% nobody: without certificates a link would be up for a moment before it is refused, and its loss
%% told of.
-spec admitted_itself(binary(), distsec_policy:policy()) -> boolean().
admitted_itself(Self, #{denied := Denied} = Policy) ->
    not lists:member(Self, Denied)
        andalso case distsec_policy:peer(Self, Policy) of
                    {ok, #{phase := prepared}} -> false;
                    {ok, #{identity := Identity}} ->
                        not lists:member(Identity, distsec_policy:revoked_identities(Policy));
                    error -> true
                end.

%% Which of the peers that the policy lists are to be linked with this node at Now: all, or with
%% `none` those of Lost whose loss goes with the last ejection (monotonic milliseconds).
-spec wanted(mesh | none, [binary()], losses(),
             {Ejected :: integer() | undefined, Now :: integer()}) -> [binary()].
wanted(mesh, Listed, _, _) ->
    Listed;
wanted(none, _, _, {undefined, _}) ->
    [];
wanted(none, Listed, Lost, {Ejected, Now}) ->
    [Peer || Peer <- Listed, is_map_key(Peer, Lost),
             Since <- [map_get(Peer, Lost)],
             Since >= Ejected - ?LOST_BEFORE_MS, Since =< Ejected + ?LOST_AFTER_MS,
             Now - max(Since, Ejected) < ?REPAIR_MS].

%% Which of Peers may be dialled at Now. Of a pair the greater name waits a second at first: the
%% other dials, and two handshakes that meet are not wasted.
-spec due([binary()], binary(), #{binary() => attempt()}, integer()) ->
          {[binary()], #{binary() => attempt()}}.
due(Peers, Self, Attempts, Now) ->
    First = fun(Peer) when Self > Peer -> #{next_ms => Now + 1000, backoff_ms => ?FIRST_BACKOFF_MS};
               (_) -> #{next_ms => Now, backoff_ms => ?FIRST_BACKOFF_MS}
            end,
    Known = maps:from_list([{Peer, maps:get(Peer, Attempts, First(Peer))} || Peer <- Peers]),
    {[Peer || Peer <- Peers, maps:get(next_ms, maps:get(Peer, Known)) =< Now],
     maps:merge(Attempts, Known)}.

%% Those of Due that are dialled now, beside Dialling: peers with the time at which that began.
-spec chosen([binary()], [{binary(), integer()}], integer()) -> [binary()].
chosen(Due, Dialling, Now) ->
    Fresh = [Peer || {Peer, Since} <- Dialling, Now - Since < ?WAITING_MS],
    lists:sublist(Due, max(0, ?AT_ONCE - length(Fresh))).

%% ---- dialling -----------------------------------------------------------------------------------

dial(State) ->
    case is_alive() andalso distsec_policy:in_force() of
        #{} = Policy ->
            case admitted_itself(own_name(), Policy) of
                true -> dial(Policy, now_ms(), State);
                false -> State
            end;
        _ ->
            State
    end.

dial(#{connect := Connect} = Policy, Now, State) ->
    #{attempts := Attempts, dialling := Dialling, lost := Lost0,
      ejected_ms := Ejected, settled_ms := Settled} = State,
    Self = own_name(),
    Up = [atom_to_binary(Node, utf8) || Node <- nodes(connected)],
    Lost = maps:without(Up, Lost0),
    Busy = Up ++ [Peer || {Peer, _} <- maps:values(Dialling)],
    Listed = [Name || #{name := Name} <- distsec_policy:peers(Policy), Name =/= Self],
    {Due, Known} = due(wanted(Connect, Listed, Lost, {Ejected, Now}) -- Busy, Self, Attempts, Now),
    %% Who was lost does not wait behind peers that have never answered.
    {Again, Others} = lists:partition(fun(Peer) -> is_map_key(Peer, Lost) end, Due),
    {DiallingAgain, DiallingOthers} =
        lists:partition(fun({Peer, _}) -> is_map_key(Peer, Lost) end, maps:values(Dialling)),
    Chosen = chosen(Again, DiallingAgain, Now)
        ++ chosen([Peer || Peer <- Others, Now >= Settled], DiallingOthers, Now),
    New = maps:from_list([{start(Peer), {Peer, Now}} || Peer <- Chosen]),
    State#{attempts := Known, lost := Lost, dialling := maps:merge(Dialling, New)}.

start(Peer) ->
    %% The name is the policy's own, so this atom is one of a bounded set.
    Node = binary_to_atom(Peer, utf8),
    {_, Reference} = spawn_monitor(fun() -> exit({dialled, net_kernel:connect_node(Node)}) end),
    Reference.

ended(Peer, {dialled, true}, #{attempts := Attempts} = State) ->
    State#{attempts := maps:remove(Peer, Attempts)};
ended(Peer, _, #{attempts := Attempts} = State) ->
    #{backoff_ms := Backoff} = maps:get(Peer, Attempts, #{backoff_ms => ?FIRST_BACKOFF_MS}),
    Wait = Backoff + rand:uniform(Backoff),
    State#{attempts := Attempts#{Peer => #{next_ms => now_ms() + Wait,
                                           backoff_ms => min(Backoff * 2, ?LONGEST_BACKOFF_MS)}}}.

%% A loss that is too old to belong to any ejection is kept for as long as the peer is dialled
%% before others, and no longer.
forget(#{lost := Lost} = State) ->
    Now = now_ms(),
    State#{lost := maps:filter(fun(_, Since) ->
                                       Now - Since < ?LOST_BEFORE_MS + ?LOST_AFTER_MS + ?REPAIR_MS
                               end, Lost)}.

own_name() ->
    atom_to_binary(node(), utf8).

now_ms() ->
    erlang:monotonic_time(millisecond).
