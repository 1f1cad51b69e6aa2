%% Every attempt to set up a link that the carrier knows of, in either direction, from accept or dial
%% until the link ends: who it is with, how far it came, and that it is told of exactly once if it came
%% to nothing. This is where a revocation finds what is pending and what is up, and where half-open
%% handshakes are counted and give way.
%%
%% A row is written by the process that does the handshake; only the registry here deletes it, when
%% that process is gone, so nothing stays behind whatever ended it.
-module(distsec_attempts).
-behaviour(gen_server).

-export([new/0, start_link/0]).
-export([inbound/2, outbound/2, handover/2, learn/2, stage/2, facts/1, refuse/3, told/1, is_told/1]).
-export([all/0, of_controller/1, of_link/1, live/3, end_denied/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([id/0, facts/0, stage/0]).

-type id() :: pos_integer().
%% accepted or dialled; a certificate that the policy admits was shown; a name was admitted; nodeup
-type stage() :: tls | admitted | named | up.
-type facts() :: #{direction := in | out, address => distsec_report:endpoint(), atom() => term()}.

-define(TABLE, distsec_attempts).
-define(TOLD, 3). % 0: not, 1: nothing more is to be told, else what is being told
-define(STAGE, 4).
-define(FACTS, 5).

%% Half-open handshakes in all, and of one source. A genuine handshake takes 10 to 30 ms, so at 200
%% arrivals a second from its own address it is done when about six have come after it.
-define(MAX_HALF_OPEN, 256).
-define(MAX_OF_SOURCE, 64).
%% Half-open handshakes of one certificate that are not the first to go. An honest node has one or two.
-define(SPARED_OF_CERTIFICATE, 4).
%% net_kernel gives the whole handshake `net_setuptime` (7 s); what hangs beyond that is ended here.
-define(DEADLINE_MS, 15000).
%% Live names: more than any rule lets a certificate have.
-define(NOBODY_KNOWS, 1000000).
%% How far two attempts of one pair may lie apart to have crossed: each may last as long.
-define(CROSSING_MS, 7000).
%% What was refused is told so, and has this long to go. ssl:close/1 would wait 5 s for a peer that keeps
%% its socket open, and the attempt would keep its place here, and its name in net_kernel.
-define(LINGER_MS, 500).
%% What was told to go away and has not is killed.
-define(GRACE_MS, 1000).

-type state() :: #{half_open := distsec_halfopen:state(),
                   watched := #{reference() => id()}}.

%% The table belongs to the caller.
-spec new() -> ok.
new() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, set, {write_concurrency, true},
                              {read_concurrency, true}]),
    ok.

-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% ---- called by who does the handshake ----------------------------------------------------------

%% Registers an accepted socket, for which Pid will do the handshake. `refused` when there is no
%% registry: nobody is let in who is not counted.
-spec inbound(pid(), facts()) -> {ok, id()} | refused.
inbound(Pid, Facts) ->
    register_attempt(Pid, Facts).

-spec outbound(pid(), facts()) -> {ok, id()} | refused.
outbound(Pid, Facts) ->
    register_attempt(Pid, Facts).

register_attempt(Pid, Facts) ->
    try gen_server:call(?MODULE, {register, Pid, Facts}) of
        Id -> {ok, Id}
    catch
        exit:_ -> refused
    end.

%% Another process takes the handshake on; the caller is free to end.
-spec handover(id(), pid()) -> ok | refused.
handover(Id, Pid) ->
    try gen_server:call(?MODULE, {handover, Id, Pid}) catch exit:_ -> refused end.

%% Adds to what is known.
-spec learn(id(), map()) -> ok.
learn(Id, More) ->
    case ets:lookup(?TABLE, Id) of
        [{_, _, _, _, Facts}] ->
            _ = ets:update_element(?TABLE, Id, {?FACTS, maps:merge(Facts, More)}),
            ok;
        [] -> ok
    end.

-spec stage(id(), stage()) -> ok.
stage(Id, Stage) ->
    _ = ets:update_element(?TABLE, Id, {?STAGE, Stage}),
    _ = Stage =:= up andalso gen_server:cast(?MODULE, {up, Id}),
    ok.

-spec facts(id()) -> facts() | undefined.
facts(Id) ->
    case ets:lookup(?TABLE, Id) of
        [{_, _, _, _, Facts}] -> Facts;
        [] -> undefined
    end.

%% Tells, once for each attempt, that it was refused and why. More: `rule`, `detail`, `claimed`. What is told
%% stands in the row while it is told: the registry tells it if the teller is ended in the middle.
-spec refuse(id(), Reason :: atom(), map()) -> ok.
refuse(Id, Reason, More) ->
    case facts(Id) of
        #{direction := Direction} = Facts ->
            Telling = {self(), Direction, Reason, maps:merge(shown(Facts), More)},
            _ = first_to_tell(Id, Telling) andalso tell(Id, Telling),
            ok;
        undefined -> ok % the row went with its process
    end.

first_to_tell(Id, Telling) ->
    1 =:= ets:select_replace(?TABLE, [{{Id, '$1', 0, '$2', '$3'}, [],
                                       [{{Id, '$1', {const, Telling}, '$2', '$3'}}]}]).

tell(Id, {_, Direction, Reason, Fields}) ->
    distsec_report:refusal(Direction, Reason, Fields),
    told(Id),
    gen_server:cast(?MODULE, {refused, Id}).

%% That nothing more is to be told of it.
-spec told(id()) -> ok.
told(Id) ->
    _ = ets:update_element(?TABLE, Id, {?TOLD, 1}),
    ok.

%% Whether it was refused, or nothing is to be told of it.
-spec is_told(id()) -> boolean().
is_told(Id) ->
    case ets:lookup(?TABLE, Id) of
        [{_, _, Told, _, _}] -> Told =/= 0;
        [] -> true
    end.

shown(Facts) ->
    #{address => distsec_report:address(maps:get(address, Facts, undefined)),
      identity => maps:get(identity, Facts, undefined),
      serial => maps:get(serial, Facts, undefined),
      claimed => maps:get(claimed, Facts, undefined),
      rule => maps:get(rule, Facts, undefined)}.

%% ---- called by who asks ------------------------------------------------------------------------

-spec all() -> [{id(), pid(), stage(), facts()}].
all() ->
    [{Id, Pid, Stage, Facts} || {Id, Pid, _, Stage, Facts} <- ets:tab2list(?TABLE)].

%% The attempt whose link has this distribution controller.
-spec of_controller(term()) -> {ok, facts()} | error.
of_controller(Controller) ->
    case [Facts || {_, _, _, #{controller := C} = Facts} <- all(), C =:= Controller] of
        [Facts | _] -> {ok, Facts};
        [] -> error
    end.

%% The link that is up with that name, the last one if there are two for a moment.
-spec of_link(Name :: binary()) -> {ok, id(), facts()} | error.
of_link(Name) ->
    case lists:sort(fun({One, _}, {Other, _}) -> One >= Other end,
                    [{Id, Facts} || {Id, _, up, #{name := N, link := Link} = Facts} <- all(), N =:= Name,
                                    is_binary(Link)]) of
        [{Id, Facts} | _] -> {ok, Id, Facts};
        [] -> error
    end.

%% How many other names of a certificate a rule has admitted that are still there, or came to nothing
%% just now. Those that came later count as well: of two that are admitted at once each sees the other at
%% its last gate.
-spec live(id(), Serial :: binary(), Rule :: binary()) -> non_neg_integer().
live(Id, Serial, Rule) ->
    Mine = case facts(Id) of
               #{name := Name} -> Name;
               _ -> undefined
           end,
    There = [Name || {Other, _, Stage, #{serial := S, rule := R, name := Name}} <- all(),
                     Other =/= Id, S =:= Serial, R =:= Rule,
                     Stage =:= named orelse Stage =:= up],
    case distsec_futile:names(Serial, Rule) of
        full -> ?NOBODY_KNOWS;
        Futile -> length(lists:usort(There ++ Futile) -- [Mine])
    end.

%% Ends every attempt, pending or up, that Denied answers with {deny, Reason, Rule}; what was
%% pending is told of as refused, what was up is the watcher's to tell.
-spec end_denied(fun((facts()) -> distsec_policy:decision())) -> ok.
end_denied(Decide) ->
    lists:foreach(
      fun({Id, Pid, Stage, #{identity := _} = Facts}) ->
              case Decide(Facts) of
                  {deny, Reason, Rule} ->
                      _ = Stage =/= up andalso refuse(Id, Reason, #{rule => Rule}),
                      part(Pid, Stage, Facts);
                  {allow, _} -> ok
              end;
         (_) -> ok % has shown nothing yet: the gates have the new policy
      end, all()).

part(Pid, up, #{controller := Controller, socket := Socket, name := Name} = Facts) ->
    distsec_parting:quietly(Name, Controller, distsec_links:owner(Socket)) orelse finish(Pid, Facts);
part(Pid, _, Facts) ->
    finish(Pid, Facts).

%% The controller first: with it the emulator ends the link at once (nodedown), whatever the rest does.
finish(Pid, Facts) ->
    _ = case Facts of
            #{controller := Controller} when is_pid(Controller) -> exit(Controller, kill);
            _ -> ok
        end,
    exit(Pid, kill),
    ok.

%% ---- the registry ------------------------------------------------------------------------------

-spec init([]) -> {ok, state()}.
init([]) ->
    process_flag(priority, high),
    process_flag(message_queue_data, off_heap),
    State = #{half_open => distsec_halfopen:new(?MAX_HALF_OPEN, ?MAX_OF_SOURCE), watched => #{}},
    %% After a fault here the rows are still there, and so may be their processes.
    {ok, lists:foldl(fun({Id, Pid, Stage, Facts}, Acc) ->
                             _ = resume(Id, Stage),
                             watch(Id, Pid, Stage, Facts, Acc)
                     end, State, lists:keysort(1, all()))}.

%% What was to be shut by a registry that has ended is shut by this one.
resume(Id, Stage) ->
    Stage =/= up andalso is_told(Id) andalso erlang:send_after(?LINGER_MS, self(), {shut, Id}).

-spec handle_call(term(), gen_server:from(), state()) -> {reply, id() | ok | refused, state()}.
handle_call({register, Pid, Facts}, _From, State) ->
    Id = erlang:unique_integer([monotonic, positive]),
    true = ets:insert_new(?TABLE, {Id, Pid, 0, tls, Facts#{started_ms => now_ms()}}),
    {reply, Id, watch(Id, Pid, tls, Facts, State)};
handle_call({handover, Id, Pid}, _From, #{watched := Watched} = State) ->
    case ets:update_element(?TABLE, Id, {2, Pid}) of
        true ->
            Old = [Reference || {Reference, I} <- maps:to_list(Watched), I =:= Id],
            lists:foreach(fun(Reference) -> erlang:demonitor(Reference, [flush]) end, Old),
            {reply, ok, State#{watched := (maps:without(Old, Watched))
                                   #{erlang:monitor(process, Pid) => Id}}};
        false ->
            {reply, refused, State}
    end;
handle_call(_, _From, State) ->
    {reply, refused, State}.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast({up, Id}, State) ->
    {noreply, closed(Id, State)};
handle_cast({refused, Id}, State) ->
    _ = erlang:send_after(?LINGER_MS, self(), {shut, Id}),
    {noreply, State};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({'DOWN', Reference, process, _, Why}, #{watched := Watched} = State) ->
    case maps:take(Reference, Watched) of
        {Id, Left} -> {noreply, ended(Id, Why, State#{watched := Left})};
        error -> {noreply, State}
    end;
handle_info({deadline, Id}, State) ->
    _ = unless_up(Id, fun(_, _) -> drop(Id, handshake_timeout) end),
    {noreply, State};
handle_info({shut, Id}, State) ->
    _ = unless_up(Id, fun(_, _) -> shut(Id) end),
    {noreply, State};
handle_info({kill_controller, Controller}, State) ->
    exit(Controller, kill),
    {noreply, State};
handle_info({kill, Id}, State) ->
    _ = unless_up(Id, fun finish/2),
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.

unless_up(Id, Do) ->
    case ets:lookup(?TABLE, Id) of
        [{_, Pid, _, Stage, Facts}] when Stage =/= up -> Do(Pid, Facts);
        _ -> ok
    end.

watch(Id, Pid, Stage, Facts, #{watched := Watched} = State) ->
    Seen = State#{watched := Watched#{erlang:monitor(process, Pid) => Id}},
    case Facts of
        #{direction := in} when Stage =/= up ->
            erlang:send_after(?DEADLINE_MS, self(), {deadline, Id}),
            half_open(Id, source(Facts), Seen);
        _ ->
            Seen
    end.

half_open(Id, Source, #{half_open := HalfOpen} = State) ->
    {Verdict, Next} = distsec_halfopen:add(Source, Id, spared(), HalfOpen),
    _ = case Verdict of
            keep -> ok;
            {drop, Victim} -> drop(Victim, flood_dropped)
        end,
    State#{half_open := Next}.

%% Whom a newcomer does not push out first: of each admitted certificate the newest few of its half-open
%% handshakes. With all of them spared one certificate, a command-line tool's say, could fill its address.
%% What this costs is paid only where somebody must go.
spared() ->
    fun(Id) ->
            case ets:lookup(?TABLE, Id) of
                [{_, _, _, Stage, #{serial := Serial}}] when Stage =/= tls ->
                    Newer = ets:select_count(?TABLE, [{{'$1', '_', '_', '$2', #{serial => Serial}},
                                                       [{'>', '$1', Id}, {'=/=', '$2', tls},
                                                        {'=/=', '$2', up}], [true]}]),
                    Newer < ?SPARED_OF_CERTIFICATE;
                _ -> false
            end
    end.

%% The socket is shut, so that its handshake fails and everything that belongs to it ends in order; a
%% kill in the middle of it could leave processes of ssl behind.
drop(Id, Reason) ->
    refuse(Id, Reason, #{}),
    shut(Id).

shut(Id) ->
    case ets:lookup(?TABLE, Id) of
        [{_, _, _, _, #{socket := Socket}}] when is_port(Socket) ->
            _ = catch gen_tcp:shutdown(Socket, read_write),
            ok;
        _ -> ok
    end,
    _ = erlang:send_after(?GRACE_MS, self(), {kill, Id}),
    ok.

ended(Id, Why, State) ->
    Next = closed(Id, State),
    _ = case ets:lookup(?TABLE, Id) of
            [{_, _, 0, Stage, Facts}] when Stage =/= up ->
                case distsec_gate:ending(Why, Stage, Facts) of
                    {refused, Reason, More} -> refuse(Id, Reason, More);
                    {crossed, Reason, More} -> _ = crossed(Facts) orelse refuse(Id, Reason, More);
                    benign -> ok
                end;
            [{_, _, {Teller, _, _, _} = Telling, _, _}] ->
                _ = is_process_alive(Teller) orelse tell(Id, Telling);
            _ -> ok
        end,
    _ = case ets:lookup(?TABLE, Id) of
            [{_, _, _, named, #{direction := in, serial := Serial, rule := Rule, name := Name}}]
              when Rule =/= undefined, Rule =/= Name ->
                distsec_futile:add(Serial, Rule, Name);
            _ -> ok
        end,
    orphan(facts(Id)),
    ets:delete(?TABLE, Id),
    Next.

%% Who did the handshake has ended, and the controller of its link may not have: where net_kernel takes a
%% nodeup from nobody (the name is another attempt's by then) dist_util exits with `shutdown`, on which
%% tls_sender waits for 5 s (death_row), with a link up that net_kernel does not know and cannot end.
orphan(#{controller := Controller}) when is_pid(Controller) ->
    _ = is_process_alive(Controller) andalso
        begin
            exit(Controller, disconnect),
            erlang:send_after(?GRACE_MS, self(), {kill_controller, Controller})
        end,
    ok;
orphan(_) ->
    ok.

%% Two nodes that dial each other at once give up one of the two (net_kernel, accept_pending): what is
%% closed while there is an attempt the other way, begun at about the same time, is no refusal. By its
%% certificate a rule or name of the policy admitted it.
crossed(#{rule := Rule, direction := Direction, started_ms := Started}) when Rule =/= undefined ->
    lists:any(fun({_, _, _, #{direction := Way, started_ms := At} = Facts}) ->
                      Way =/= Direction andalso abs(At - Started) =< ?CROSSING_MS
                          andalso (maps:get(rule, Facts, undefined) =:= Rule
                                   orelse maps:get(name, Facts, undefined) =:= Rule)
              end, all());
crossed(_) ->
    false.

closed(Id, #{half_open := HalfOpen} = State) ->
    case facts(Id) of
        #{direction := in} = Facts ->
            State#{half_open := distsec_halfopen:remove(source(Facts), Id, HalfOpen)};
        _ ->
            State
    end.

source(Facts) ->
    distsec_halfopen:source(maps:get(address, Facts, undefined)).

now_ms() ->
    erlang:monotonic_time(millisecond).
