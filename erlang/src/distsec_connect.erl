%% Dials the peers that the policy lists, each on its own with its own back-off, so that one that
%% is down delays nobody (`connect = "mesh"`). With `none` it dials nobody.
-module(distsec_connect).
-behaviour(gen_server).

-export([start_link/0, refresh/0, lost/1, due/4, chosen/3]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(TICK_MS, 100).
-define(FIRST_BACKOFF_MS, 250).
-define(LONGEST_BACKOFF_MS, 10000).
%% Handshakes are begun a few at a time; one that has not come through in a second waits for a peer
%% that does not answer, and holds nobody else up.
-define(AT_ONCE, 4).
-define(WAITING_MS, 1000).

-type attempt() :: #{next_ms := integer(), backoff_ms := pos_integer()}.
-type state() :: #{attempts := #{binary() => attempt()},
                   dialling := #{reference() => {binary(), integer()}}}.

-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The policy changed: whom it lists now is dialled without waiting for a back-off.
-spec refresh() -> ok.
refresh() ->
    gen_server:cast(?MODULE, refresh).

%% A link went down: its peer is dialled again soon.
-spec lost(binary()) -> ok.
lost(Peer) ->
    gen_server:cast(?MODULE, {lost, Peer}).

-spec init([]) -> {ok, state()}.
init([]) ->
    erlang:send_after(?TICK_MS, self(), tick),
    {ok, #{attempts => #{}, dialling => #{}}}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, ok, state()}.
handle_call(_, _From, State) ->
    {reply, ok, State}.

-spec handle_cast(refresh | {lost, binary()}, state()) -> {noreply, state()}.
handle_cast(refresh, State) ->
    {noreply, State#{attempts := #{}}};
handle_cast({lost, Peer}, #{attempts := Attempts} = State) ->
    {noreply, State#{attempts := maps:remove(Peer, Attempts)}}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info(tick, State) ->
    erlang:send_after(?TICK_MS, self(), tick),
    {noreply, dial(State)};
handle_info({'DOWN', Reference, process, _, Why}, #{dialling := Dialling} = State) ->
    case maps:take(Reference, Dialling) of
        {{Peer, _}, Left} -> {noreply, ended(Peer, Why, State#{dialling := Left})};
        error -> {noreply, State}
    end;
handle_info(_, State) ->
    {noreply, State}.

dial(#{attempts := Attempts, dialling := Dialling} = State) ->
    case is_alive() andalso distsec_policy:in_force() of
        #{connect := mesh} = Policy ->
            Now = erlang:monotonic_time(millisecond),
            Self = atom_to_binary(node(), utf8),
            Busy = [atom_to_binary(N, utf8) || N <- nodes(connected)]
                ++ [Peer || {Peer, _} <- maps:values(Dialling)],
            Listed = [Name || #{name := Name} <- distsec_policy:peers(Policy), Name =/= Self],
            {Due, Known} = due(Listed -- Busy, Self, Attempts, Now),
            Chosen = chosen(Due, maps:values(Dialling), Now),
            New = maps:from_list([{start(Peer), {Peer, Now}} || Peer <- Chosen]),
            State#{attempts := Known, dialling := maps:merge(Dialling, New)};
        _ ->
            State
    end.

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
    State#{attempts := Attempts#{Peer => #{next_ms => erlang:monotonic_time(millisecond) + Wait,
                                           backoff_ms => min(Backoff * 2, ?LONGEST_BACKOFF_MS)}}}.
