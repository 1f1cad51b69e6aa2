%% A managed node that has been taken over: its honest agent is ended, and this one, which holds
%% the node's real agent.key and runs in the node's real VM, opens properly and then sends what it
%% likes. The sender belongs to no evaluation, so it stays.
-module(distsec_test_hostile).

-export([open_and_send/1, flood/0, sent/0, stop/0]).

-define(BATCH, 500).

%% Opens, sends these bytes as they are, and leaves the connection open.
-spec open_and_send(iodata()) -> ok.
open_and_send(Bytes) ->
    begin_as(fun(Socket) ->
                     ok = inet:setopts(Socket, [{packet, raw}]),
                     ok = gen_tcp:send(Socket, Bytes),
                     receive stop -> ok end
             end).

%% Opens, and sends events as fast as they are taken. It reads, and answers nothing.
-spec flood() -> ok.
flood() ->
    begin_as(fun(Socket) ->
                     ok = inet:setopts(Socket, [{packet, raw}]),
                     _ = spawn_link(fun() -> swallow(Socket) end),
                     flood(Socket, 1000)
             end).

%% How many frames of the flood the orchestrator has taken so far.
-spec sent() -> non_neg_integer().
sent() ->
    counters:get(persistent_term:get(?MODULE), 1).

%% Ends it, and has the honest agent back.
-spec stop() -> ok.
stop() ->
    exit(whereis(?MODULE), kill),
    {ok, _} = supervisor:restart_child(distsec_sup, distsec_agent),
    ok.

begin_as(Fun) ->
    _ = supervisor:terminate_child(distsec_sup, distsec_agent),
    persistent_term:put(?MODULE, counters:new(1, [])),
    Caller = self(),
    {Pid, Monitor} = spawn_monitor(
                       fun() ->
                               register(?MODULE, self()),
                               Socket = open(),
                               Caller ! {self(), open},
                               Fun(Socket)
                       end),
    receive
        {Pid, open} -> demonitor(Monitor, [flush]), ok;
        {'DOWN', Monitor, process, Pid, Why} -> exit(Why)
    end.

open() ->
    Directory = distsec_guard:directory(),
    Node = maps:get(node, distsec_guard:guard()),
    {ok, Key} = distsec_port:read_key(filename:join(Directory, "agent.key")),
    {ok, Socket} = gen_tcp:connect({local, filename:join(Directory, "agent.sock")}, 0,
                                   [local, binary, {packet, 4}, {active, false}]),
    NonceA = crypto:strong_rand_bytes(32),
    ok = say(Socket, distsec_port:hello(Node, NonceA)),
    {ok, NonceO} = distsec_port:check_challenge(heard(Socket), Key, Node, NonceA),
    ok = say(Socket, distsec_port:proof(Key, Node, NonceA, NonceO, distsec_guard:launch())),
    {welcome, _} = heard(Socket),
    ok = say(Socket, {snapshot, distsec_snapshot:take()}),
    Socket.

say(Socket, Term) ->
    gen_tcp:send(Socket, distsec_port:encode(Term)).

heard(Socket) ->
    {ok, Frame} = gen_tcp:recv(Socket, 0, 5000),
    binary_to_term(Frame).

swallow(Socket) ->
    {ok, _} = gen_tcp:recv(Socket, 0),
    swallow(Socket).

flood(Socket, First) ->
    ok = gen_tcp:send(Socket, [refusal(N) || N <- lists:seq(First, First + ?BATCH - 1)]),
    counters:add(persistent_term:get(?MODULE), 1, ?BATCH),
    flood(Socket, First + ?BATCH).

refusal(N) ->
    Event = #{type => refusal, at_ms => 1763764000123, direction => in, reason => not_allowed,
              address => undefined, identity => undefined, serial => undefined,
              claimed => <<"evil@127.0.0.1">>, rule => undefined, detail => undefined},
    Frame = distsec_port:encode({event, refusals, N, Event}),
    [<<(byte_size(Frame)):32>>, Frame].
