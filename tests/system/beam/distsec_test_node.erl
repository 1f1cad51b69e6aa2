%% Lets a test evaluate Erlang in a node over a Unix socket, never over the distribution under
%% test:
%%
%%     erl -noinput -pa DIR -run distsec_test_node start /path/to/socket
%%
%% A frame ({packet,4}) holds expressions in UTF-8; the answer is $o or $e (an exception), and the
%% term as text. Each connection has a process of its own and serves one frame after the other.
-module(distsec_test_node).

-export([start/1]).

-spec start([string()]) -> ok.
start([Path]) ->
    Starter = self(),
    {Pid, Monitor} = spawn_monitor(fun() -> listen(Path, Starter) end),
    receive
        {Pid, listening} ->
            true = demonitor(Monitor, [flush]),
            ok;
        {'DOWN', Monitor, process, Pid, Reason} ->
            io:format("distsec_test_node: ~0tp~n", [Reason]),
            halt(1)
    end.

listen(Path, Starter) ->
    _ = file:delete(Path), % an earlier run of this node left it
    {ok, Listener} = gen_tcp:listen(0, [local, {ifaddr, {local, Path}}, binary, {packet, 4},
                                        {active, false}, {backlog, 64}]),
    Starter ! {self(), listening},
    accept(Listener).

accept(Listener) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn(fun() -> receive go -> serve(Socket) end end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(Listener).

serve(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Source} ->
            ok = gen_tcp:send(Socket, answer(Source)),
            serve(Socket);
        {error, _} ->
            ok
    end.

answer(Source) ->
    try
        {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list([Source, " ."])),
        {ok, Expressions} = erl_parse:parse_exprs(Tokens),
        {value, Value, _} = erl_eval:exprs(Expressions, erl_eval:new_bindings()),
        [$o, text(Value)]
    catch
        Class:Reason:Stack ->
            [$e, text({Class, Reason, Stack})]
    end.

text(Term) ->
    unicode:characters_to_binary(io_lib:format("~0tp", [Term])).
