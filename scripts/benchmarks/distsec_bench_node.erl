%% A node that scripts/bench measures with. It takes expressions over a Unix socket ({packet,4}: the text of
%% one; the answer is `o` and the value, or `e` and the exception), so that nothing but what is measured
%% crosses the distribution.
%%
%% For nodes that run without distsec it is the resolver as well (-epmd_module), from the environment
%% variable BENCH_PORTS ("name port …"): no carrier pays for an epmd that another one does without.
-module(distsec_bench_node).

-export([start/1]).
-export([join/1, await_down/1, mesh/1, part/0, push/3, round_trips/2]).
-export([start_link/0, register_node/2, register_node/3, listen_port_please/2, port_please/2,
         port_please/3, address_please/3, names/1]).

-define(SINK, distsec_bench_sink).
-define(DEADLINE_MS, 30000).
-define(LISTEN, [local, binary, {packet, 4}, {active, false}]).

-spec start([string()]) -> ok.
start([Path]) ->
    spawn(fun() ->
                  register(?SINK, self()),
                  sink(0)
          end),
    spawn(fun() ->
                  {ok, Listen} = gen_tcp:listen(0, [{ifaddr, {local, Path}} | ?LISTEN]),
                  serve(Listen)
          end),
    ok.

serve(Listen) ->
    {ok, Socket} = gen_tcp:accept(Listen),
    answer(Socket),
    serve(Listen).

answer(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Text} ->
            ok = gen_tcp:send(Socket, evaluate(unicode:characters_to_list(Text))),
            answer(Socket);
        {error, _} ->
            gen_tcp:close(Socket)
    end.

evaluate(Text) ->
    try
        {ok, Tokens, _} = erl_scan:string(Text),
        {ok, Expressions} = erl_parse:parse_exprs(Tokens),
        {value, Value, _} = erl_eval:exprs(Expressions, []),
        unicode:characters_to_binary(io_lib:format("o~0tp", [Value]))
    catch
        Class:Reason:Stack ->
            unicode:characters_to_binary(io_lib:format("e~0tP", [{Class, Reason, Stack}, 60]))
    end.

%%---- links

%% Microseconds until the link is up; it is taken down again. The peer must have none (await_down/1).
-spec join(node()) -> pos_integer().
join(Peer) ->
    Begun = erlang:monotonic_time(),
    true = net_kernel:connect_node(Peer),
    Taken = erlang:convert_time_unit(erlang:monotonic_time() - Begun, native, microsecond),
    true = erlang:disconnect_node(Peer),
    await_down(Peer),
    Taken.

-spec await_down(node()) -> ok.
await_down(Peer) ->
    until(fun() -> not lists:member(Peer, nodes(connected)) end).

%% Dials those of Peers whose names come before this node's, so that each pair is dialled once, and waits
%% until all are there.
-spec mesh([node()]) -> ok.
mesh(Peers) ->
    ok = net_kernel:monitor_nodes(true),
    [spawn(fun() -> net_kernel:connect_node(Peer) end) || Peer <- Peers, Peer < node()],
    await_up(Peers -- [node() | nodes()]),
    ok = net_kernel:monitor_nodes(false).

await_up([]) ->
    ok;
await_up(Missing) ->
    receive
        {nodeup, Node} -> await_up(Missing -- [Node])
    after ?DEADLINE_MS -> exit({missing, Missing})
    end.

%% Again and again: what `global` of another node sends meanwhile brings its link back.
-spec part() -> ok.
part() ->
    until(fun() ->
                  [erlang:disconnect_node(Node) || Node <- nodes()],
                  nodes(connected) =:= []
          end).

until(Condition) ->
    until(Condition, erlang:monotonic_time(millisecond) + ?DEADLINE_MS).

until(Condition, Deadline) ->
    case Condition() of
        true ->
            ok;
        false ->
            erlang:monotonic_time(millisecond) < Deadline orelse exit(deadline),
            receive after 2 -> ok end,
            until(Condition, Deadline)
    end.

%%---- messages

%% Sends messages of Size bytes for that long: {Messages, Microseconds until the peer had all}.
-spec push(node(), pos_integer(), pos_integer()) -> {non_neg_integer(), pos_integer()}.
push(Peer, Size, Milliseconds) ->
    Message = binary:copy(<<"x">>, Size),
    Sink = {?SINK, Peer},
    Begun = erlang:monotonic_time(microsecond),
    send_until(Sink, Message, batch(Size), Begun + Milliseconds * 1000),
    Sink ! {done, self()},
    receive
        {received, Count} ->
            {Count, erlang:monotonic_time(microsecond) - Begun}
    after 2 * ?DEADLINE_MS ->
            exit(deadline)
    end.

%% Messages between two looks at the clock: about 256 KB.
batch(Size) ->
    max(1, 262144 div Size).

send_until(Sink, Message, Batch, End) ->
    send(Sink, Message, Batch),
    case erlang:monotonic_time(microsecond) < End of
        true -> send_until(Sink, Message, Batch, End);
        false -> ok
    end.

send(_, _, 0) ->
    ok;
send(Sink, Message, Left) ->
    Sink ! Message,
    send(Sink, Message, Left - 1).

sink(Count) ->
    receive
        Message when is_binary(Message) ->
            sink(Count + 1);
        {done, From} ->
            From ! {received, Count},
            sink(0);
        {echo, From} ->
            From ! echo,
            sink(Count)
    end.

%% Microseconds of each of Count round trips of a small message.
-spec round_trips(node(), pos_integer()) -> [non_neg_integer()].
round_trips(Peer, Count) ->
    [begin
         Begun = erlang:monotonic_time(),
         {?SINK, Peer} ! {echo, self()},
         receive echo -> ok after ?DEADLINE_MS -> exit(deadline) end,
         erlang:convert_time_unit(erlang:monotonic_time() - Begun, native, microsecond)
     end || _ <- lists:seq(1, Count)].

%%---- the resolver

-spec start_link() -> ignore.
start_link() ->
    ignore.

-spec register_node(term(), term()) -> {ok, 1}.
register_node(_, _) ->
    {ok, 1}.

-spec register_node(term(), term(), term()) -> {ok, 1}.
register_node(_, _, _) ->
    {ok, 1}.

-spec listen_port_please(term(), term()) -> {ok, inet:port_number()}.
listen_port_please(Name, _) ->
    {ok, port_of(Name)}.

-spec address_please(term(), term(), term()) -> {ok, inet:ip4_address(), inet:port_number(), 5}.
address_please(Name, _, _) ->
    {ok, {127, 0, 0, 1}, port_of(Name), 5}.

-spec port_please(term(), term()) -> {port, inet:port_number(), 5}.
port_please(Name, _) ->
    {port, port_of(Name), 5}.

-spec port_please(term(), term(), term()) -> {port, inet:port_number(), 5}.
port_please(Name, _, _) ->
    {port, port_of(Name), 5}.

-spec names(term()) -> {ok, []}.
names(_) ->
    {ok, []}.

port_of(Name) when is_atom(Name) -> port_of(atom_to_list(Name));
port_of(Name) -> find(Name, string:lexemes(os:getenv("BENCH_PORTS", ""), " ")).

find(Name, [Name, Port | _]) -> list_to_integer(Port);
find(Name, [_, _ | Rest]) -> find(Name, Rest);
find(_, []) -> 0.
