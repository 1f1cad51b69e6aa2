%% Keeps links up beyond the certificates that they were made with: proves both ends anew (distsec_proof) in
%% good time before one of the two certificates ends, and after this node was given another one. A link whose
%% proof does not come in time is the watcher's to end.
%%
%% Who dialled a link begins; who was dialled only when half of the time is over and nothing has come. Where a
%% proof brings no later end, because a peer has no new certificate yet, it is tried again.
-module(distsec_renewal).
-behaviour(gen_server).

-export([start_link/0, prove/1, due/4]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([proof/0]).

%% What is known of a link's last proof: its peer's certificate and ours, seconds and milliseconds (monotonic).
-type proof() :: #{direction := in | out, not_after := integer(), own_serial := binary(),
                   own_not_after := integer(), at_ms := integer(), _ => _}.
-type state() :: #{next := #{Peer :: binary() => MonotonicMs :: integer()},
                   running := #{reference() => binary()}}.

-define(TICK_MS, 500).
-define(AT_ONCE, 4).
%% A proof begins when a third of the time is left, within these bounds (seconds).
-define(LEAST_S, 3).
-define(MOST_S, 86400).
%% After another certificate was loaded; spread, since it is often loaded everywhere at once.
-define(SPREAD_MS, 5000).
-define(DIALLED_LATER_MS, 5000).
-define(AGAIN_LEAST_MS, 2000).
-define(AGAIN_MOST_MS, 600000).
%% For the command of an operator.
-define(COMMAND_AT_ONCE, 8).
-define(COMMAND_MS, 20000).

-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% Proves the links that this node has dialled now, those with Peers or all ([]), and waits for it, at most
%% COMMAND_MS. A peer of Peers with which there is no such link is nobody's failure.
-spec prove([binary()]) -> {Done :: [{binary(), distsec_proof:outcome()}], Failed :: [{binary(), atom()}]}.
prove(Peers) ->
    Names = lists:usort([Name || {_, _, up, #{direction := out, name := Name}} <- distsec_attempts:all(),
                                 Peers =:= [] orelse lists:member(Name, Peers)]),
    Deadline = erlang:monotonic_time(millisecond) + ?COMMAND_MS,
    Results = some(Names, #{}, Deadline, []),
    {[{Name, Outcome} || {Name, {ok, Outcome}} <- Results],
     [{Name, Reason} || {Name, {error, Reason}} <- Results, Reason =/= no_link]}.

some([], Running, _, Results) when map_size(Running) =:= 0 ->
    Results;
some([Name | Left], Running, Deadline, Results) when map_size(Running) < ?COMMAND_AT_ONCE ->
    {_, Reference} = spawn_monitor(fun() -> exit({proof, distsec_proof:prove(Name)}) end),
    some(Left, Running#{Reference => Name}, Deadline, Results);
some(Left, Running, Deadline, Results) ->
    receive
        {'DOWN', Reference, process, _, Why} when is_map_key(Reference, Running) ->
            {Name, Others} = maps:take(Reference, Running),
            Result = case Why of
                         {proof, Outcome} -> Outcome;
                         _ -> {error, crashed}
                     end,
            some(Left, Others, Deadline, [{Name, Result} | Results])
    after max(0, Deadline - erlang:monotonic_time(millisecond)) ->
            [{Name, {error, timeout}} || Name <- Left ++ maps:values(Running)] ++ Results
    end.

%% Whether a link is to be proven now, and how long to wait before it is tried again if that brings nothing.
%% Pure. Own: what this node shows now; Now: {Unix seconds, monotonic milliseconds}; Spread: 0 to 1, the
%% link's own.
-spec due(proof(), Own :: #{serial := binary(), loaded_ms := integer(), _ => _}, {integer(), integer()}, float()) ->
          {true | false, AgainMs :: pos_integer()}.
due(#{direction := Direction, not_after := Theirs, own_serial := Serial, own_not_after := Ours, at_ms := At},
    #{serial := Current, loaded_ms := Loaded}, {Now, NowMs}, Spread) ->
    End = min(Theirs, Ours),
    Life = End - Now + max(0, NowMs - At) div 1000, % what was left when it was proven
    Margin = max(?LEAST_S, min(?MOST_S, Life div 3)),
    Begins = case Direction of in -> Margin div 2; _ -> Margin end,
    Replaced = Serial =/= Current
        andalso NowMs - Loaded >= round(Spread * ?SPREAD_MS)
                                  + case Direction of in -> ?DIALLED_LATER_MS; _ -> 0 end,
    Again = max(?AGAIN_LEAST_MS, min(?AGAIN_MOST_MS, Margin * 1000 div 8)),
    {Replaced orelse End - Now =< Begins, Again}.

%% ---- gen_server ---------------------------------------------------------------------------------

-spec init([]) -> {ok, state()}.
init([]) ->
    erlang:send_after(?TICK_MS, self(), tick),
    {ok, #{next => #{}, running => #{}}}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, ok, state()}.
handle_call(_, _From, State) ->
    {reply, ok, State}.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info(tick, State) ->
    erlang:send_after(?TICK_MS, self(), tick),
    case distsec_tls:own() of
        undefined -> {noreply, State}; % a carrier whose links cannot be proven again
        Own -> {noreply, look(Own, State)}
    end;
handle_info({'DOWN', Reference, process, _, _}, #{running := Running} = State) ->
    {noreply, State#{running := maps:remove(Reference, Running)}};
handle_info(_, State) ->
    {noreply, State}.

look(Own, #{next := Next} = State) ->
    Links = [Facts || {_, _, up, #{link := Link, proven := #{}, name := _} = Facts} <- distsec_attempts:all(),
                      is_binary(Link)],
    Names = [Name || #{name := Name} <- Links],
    lists:foldl(fun(Facts, Acc) -> look(Facts, Own, Acc) end, State#{next := maps:with(Names, Next)}, Links).

look(#{name := Name, direction := Direction, not_after := NotAfter, proven := Proven}, Own,
     #{next := Next, running := Running} = State) ->
    NowMs = erlang:monotonic_time(millisecond),
    Spread = erlang:phash2({Name, maps:get(serial, Own)}, 1000) / 1000,
    {Due, Again} = due(Proven#{direction => Direction, not_after => NotAfter}, Own,
                       {distsec_clock:now(), NowMs}, Spread),
    case Due andalso NowMs >= maps:get(Name, Next, NowMs) andalso map_size(Running) < ?AT_ONCE
        andalso not lists:member(Name, maps:values(Running))
        andalso distsec_policy:address(Name) =/= error of
        true ->
            {_, Reference} = spawn_monitor(fun() -> distsec_proof:prove(Name) end),
            State#{running := Running#{Reference => Name}, next := Next#{Name => NowMs + Again}};
        false ->
            State
    end.
