%% The agent's end of the port (docs/port-protocol.md): connects to the orchestrator's socket,
%% proves itself and has the other side prove itself, hands on what the rings hold, and carries
%% out commands. Nothing here is needed for the guard: without it the node stays guarded.
%%
%% Sending may block for as long as the orchestrator is stalled, so one writer process sends and
%% this one never waits for it. It reads the rings only when the writer is free: what waits, waits
%% there, bounded.
-module(distsec_agent).
-behaviour(gen_server).

-export([start_link/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-define(HEARTBEAT_MS, 1000).
-define(OPENING_MS, 5000).
-define(NAME_EVERY_MS, 20).
-define(FIRST_RETRY_MS, 100).
-define(LONGEST_RETRY_MS, 2000).
-define(BATCH, 256).
-define(MAX_FRAME_BYTES, 1048576).
-define(MAX_COMMANDS, 32).
-define(MAX_BESIDE, 4).

-type phase() :: unnamed | closed | {challenged, Nonce :: binary()} | proven | open.
-type state() :: #{phase := phase(), socket := undefined | gen_tcp:socket(),
                   writer := undefined | pid(), writing := boolean(), retry_ms := pos_integer(),
                   outbox := [term()], snapshot_due := boolean(), heartbeat_due := boolean(),
                   cursors := #{distsec_ring:lane() => non_neg_integer()},
                   taken := #{distsec_ring:lane() => non_neg_integer()},
                   patience := #{distsec_ring:lane() => non_neg_integer()},
                   worker := undefined | {pid(), reference(), integer() | stale},
                   beside := #{reference() => integer() | stale},
                   commands := [{integer(), atom(), map()}]}.

-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

-spec init([]) -> {ok, state()}.
init([]) ->
    process_flag(trap_exit, true),
    process_flag(message_queue_data, off_heap),
    self() ! check_name,
    self() ! install_handler,
    erlang:send_after(?HEARTBEAT_MS, self(), heartbeat),
    None = #{critical => 0, refusals => 0},
    {ok, #{phase => unnamed, socket => undefined, writer => undefined, writing => false,
           retry_ms => ?FIRST_RETRY_MS, outbox => [], snapshot_due => false,
           heartbeat_due => false, cursors => None, taken => None, patience => None,
           worker => undefined, commands => [], beside => #{}}}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, ok, state()}.
handle_call(_, _From, State) ->
    {reply, ok, State}.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info(distsec_wake, State) ->
    ok = distsec_ring:rearm(),
    {noreply, pump(State)};
handle_info(heartbeat, State) ->
    erlang:send_after(?HEARTBEAT_MS, self(), heartbeat),
    _ = distsec_handler:install(),
    _ = distsec_redact:install(),
    ok = distsec_ring:rearm(), % a wake may have gone to an agent that ended
    %% A number that was taken before the last heartbeat and is not stored yet will never be.
    #{taken := Taken} = State,
    {noreply, pump(State#{heartbeat_due := true, patience := Taken, taken := sequences()})};
handle_info({sent, Writer}, #{writer := Writer} = State) ->
    {noreply, pump(State#{writing := false})};
handle_info({tcp, Socket, Frame}, #{socket := Socket} = State) ->
    {noreply, received(distsec_port:decode(Frame), State)};
handle_info({tcp_closed, Socket}, #{socket := Socket} = State) ->
    {noreply, close(State)};
handle_info({tcp_error, Socket, _}, #{socket := Socket} = State) ->
    {noreply, close(State)};
handle_info({'EXIT', Writer, _}, #{writer := Writer} = State) ->
    {noreply, close(State#{writer := undefined})};
handle_info({'DOWN', Reference, process, _, _}, #{worker := {_, Reference, stale}} = State) ->
    {noreply, next_command(State#{worker := undefined})};
handle_info({'DOWN', Reference, process, _, Why}, #{worker := {_, Reference, Id}} = State) ->
    {noreply, next_command(reply(answer(Id, Why), State#{worker := undefined}))};
handle_info({'DOWN', Reference, process, _, Why}, #{beside := Beside} = State) when is_map_key(Reference, Beside) ->
    case maps:take(Reference, Beside) of
        {stale, Left} -> {noreply, State#{beside := Left}};
        {Id, Left} -> {noreply, reply(answer(Id, Why), State#{beside := Left})}
    end;
handle_info(install_handler, State) ->
    _ = distsec_handler:install()
        orelse erlang:send_after(?NAME_EVERY_MS, self(), install_handler),
    {noreply, State};
handle_info(check_name, State) ->
    {noreply, check_name(State)};
handle_info(connect, #{phase := closed} = State) ->
    {noreply, connect(State)};
handle_info({opening_deadline, Socket}, #{socket := Socket, phase := Phase} = State)
  when Phase =/= open ->
    {noreply, close(State)};
handle_info(stop_node, State) ->
    init:stop(),
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.

-spec terminate(term(), state()) -> ok.
terminate(_Why, State) ->
    _ = close(State),
    ok.

%% ---- connecting -------------------------------------------------------------------------------

%% Flags leak into child VMs; only the node that they name acts on them. The guard has compared
%% the flags already, so this waits for net_kernel, and for nothing else.
check_name(State) ->
    Name = maps:get(node, distsec_guard:guard()),
    case atom_to_binary(node(), utf8) =:= Name andalso distsec_snapshot:carrier() =/= undefined of
        true -> connect(State#{phase := closed});
        false -> erlang:send_after(?NAME_EVERY_MS, self(), check_name), State
    end.

connect(State) ->
    Path = filename:join(distsec_guard:directory(), "agent.sock"),
    Options = [local, binary, {packet, 4}, {packet_size, ?MAX_FRAME_BYTES}, {active, once},
               {send_timeout, 2000}, {send_timeout_close, true}],
    %% A path beyond 107 bytes is a badarg; it must not end this process, and in the end those beside it.
    case try gen_tcp:connect({local, Path}, 0, Options, 1000) catch exit:badarg -> {error, badarg} end of
        {ok, Socket} ->
            erlang:send_after(?OPENING_MS, self(), {opening_deadline, Socket}),
            Agent = self(),
            Writer = spawn_link(fun() -> write(Agent, Socket) end),
            NonceA = crypto:strong_rand_bytes(32),
            Node = maps:get(node, distsec_guard:guard()),
            send([distsec_port:hello(Node, NonceA)],
                 State#{phase := {challenged, NonceA}, socket := Socket, writer := Writer});
        {error, _} ->
            retry(State)
    end.

retry(#{retry_ms := Retry} = State) ->
    erlang:send_after(Retry, self(), connect),
    State#{retry_ms := min(Retry * 2, ?LONGEST_RETRY_MS)}.

close(#{socket := undefined} = State) ->
    State;
close(#{socket := Socket, writer := Writer} = State) ->
    _ = is_pid(Writer) andalso begin unlink(Writer), exit(Writer, kill) end,
    _ = gen_tcp:close(Socket),
    %% Who asked is gone, so an answer that is still being worked on goes to nobody.
    Worker = case maps:get(worker, State) of
                 {Pid, Reference, _} -> {Pid, Reference, stale};
                 undefined -> undefined
             end,
    retry(State#{phase := closed, socket := undefined, writer := undefined, writing := false,
                 outbox := [], snapshot_due := false, worker := Worker, commands := [],
                 beside := maps:map(fun(_, _) -> stale end, maps:get(beside, State))}).

write(Agent, Socket) ->
    receive
        {send, Frames} ->
            lists:foreach(fun(Frame) -> ok = sent(gen_tcp:send(Socket, Frame)) end, Frames),
            Agent ! {sent, self()},
            write(Agent, Socket)
    end.

sent(ok) -> ok;
sent({error, Why}) -> exit({shutdown, Why}).

%% ---- receiving --------------------------------------------------------------------------------

received({ok, Term}, #{socket := Socket} = State) ->
    case act(Term, State) of
        #{socket := Socket} = Next ->
            _ = inet:setopts(Socket, [{active, once}]),
            Next;
        Next ->
            Next
    end;
received(error, State) ->
    close(State).

act({goodbye, Reason}, State) when Reason =:= version; Reason =:= proof; Reason =:= process;
                                   Reason =:= busy ->
    _ = Reason =:= version
        andalso logger:warning("distsec: the orchestrator refuses this agent's version of the "
                               "port protocol (~p); restart this node", [distsec_port:version()]),
    close(State);
act(Challenge, #{phase := {challenged, NonceA}} = State) ->
    Node = maps:get(node, distsec_guard:guard()),
    case distsec_port:read_key(filename:join(distsec_guard:directory(), "agent.key")) of
        {ok, Key} ->
            case distsec_port:check_challenge(Challenge, Key, Node, NonceA) of
                {ok, NonceO} ->
                    Launch = distsec_guard:launch(),
                    send([distsec_port:proof(Key, Node, NonceA, NonceO, Launch)],
                         State#{phase := proven});
                {error, version} ->
                    logger:warning("distsec: the orchestrator speaks another version of the port "
                                   "protocol than this agent (~p); restart this node to load the "
                                   "agent that came with it", [distsec_port:version()]),
                    close(State);
                {error, _} ->
                    close(State)
            end;
        error ->
            close(State)
    end;
act({welcome, #{critical := Critical, refusals := Refusals}}, #{phase := proven} = State)
  when is_integer(Critical), is_integer(Refusals) ->
    acknowledge(critical, Critical),
    acknowledge(refusals, Refusals),
    pump(State#{phase := open, retry_ms := ?FIRST_RETRY_MS, snapshot_due := true,
                      heartbeat_due := true,
                      cursors := #{critical => Critical, refusals => Refusals}});
act({ack, Lane, Sequence}, #{phase := open} = State)
  when is_integer(Sequence), Lane =:= critical orelse Lane =:= refusals ->
    acknowledge(Lane, Sequence),
    State;
%% Proofs wait for peers that may not answer: no denial stands behind them.
act({command, Id, renew, Arguments}, #{phase := open, beside := Beside} = State)
  when is_integer(Id), is_map(Arguments) ->
    case map_size(Beside) < ?MAX_BESIDE of
        true -> State#{beside := Beside#{element(2, run(renew, Arguments)) => Id}};
        false -> reply({reply, Id, error, #{reason => busy}}, State)
    end;
act({command, Id, Kind, Arguments}, #{phase := open, commands := Commands} = State)
  when is_integer(Id), is_atom(Kind), is_map(Arguments) ->
    case length(Commands) < ?MAX_COMMANDS of
        true -> next_command(State#{commands := Commands ++ [{Id, Kind, Arguments}]});
        false -> reply({reply, Id, error, #{reason => busy}}, State)
    end;
act(_, State) ->
    close(State).

sequences() ->
    #{critical => distsec_ring:sequence(critical), refusals => distsec_ring:sequence(refusals)}.

acknowledge(Lane, Sequence) ->
    distsec_ring:acknowledge(Lane, max(0, Sequence)).

%% ---- sending ----------------------------------------------------------------------------------

send(Terms, #{writer := Writer} = State) ->
    Writer ! {send, [distsec_port:encode(Term) || Term <- Terms]},
    State#{writing := true}.

reply(Reply, #{outbox := Outbox} = State) ->
    pump(State#{outbox := Outbox ++ [Reply]}).

%% Everything that may go out now, if the writer is free.
pump(#{phase := open, writing := false} = State) ->
    #{outbox := Outbox, cursors := #{critical := C0, refusals := R0},
      patience := #{critical := CriticalPatience, refusals := RefusalsPatience}} = State,
    {Critical, C1} = distsec_ring:read(critical, C0, ?BATCH, CriticalPatience),
    {Refusals, R1} = distsec_ring:read(refusals, R0, ?BATCH, RefusalsPatience),
    Terms = Outbox
        ++ [{snapshot, distsec_snapshot:take()} || maps:get(snapshot_due, State)]
        ++ [{event, critical, N, Event} || {N, Event} <- Critical]
        ++ [{event, refusals, N, Event} || {N, Event} <- Refusals]
        ++ [{heartbeat, distsec_snapshot:heartbeat()} || maps:get(heartbeat_due, State)],
    Next = State#{outbox := [], snapshot_due := false, heartbeat_due := false,
                  cursors := #{critical => C1, refusals => R1}},
    case Terms of
        [] -> Next;
        _ -> send(Terms, Next)
    end;
pump(State) ->
    State.

%% ---- commands ---------------------------------------------------------------------------------

%% One at a time, in a process of its own: ending links waits for their nodedown.
next_command(#{worker := undefined, commands := [{Id, Kind, Arguments} | Rest]} = State) ->
    {Pid, Reference} = run(Kind, Arguments),
    _ = Kind =:= stop andalso erlang:send_after(100, self(), stop_node),
    State#{worker := {Pid, Reference, Id}, commands := Rest};
next_command(State) ->
    State.

run(Kind, Arguments) ->
    spawn_monitor(fun() ->
                          {Status, Fields} = distsec_command:run(Kind, Arguments),
                          exit({done, Status, Fields})
                  end).

answer(Id, {done, Status, Fields}) -> {reply, Id, Status, Fields};
answer(Id, Why) -> {reply, Id, error, #{reason => crashed, detail => distsec_report:text(Why)}}.
