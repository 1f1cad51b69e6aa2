-module(distsec_shell_remote_tests).
-include_lib("eunit/include/eunit.hrl").

-define(PATIENCE_S, 60).

%% Were the end of the input to reach the shell itself, it would halt this VM, tests and all.
an_end_of_input_leaves_the_shell_test_() ->
    [{timeout, 2 * ?PATIENCE_S, ?_assertEqual(left, at_a_terminal_that_answers(Answer))}
     || Answer <- [eof, {eof, {1, 1}}, {ok, [{atom, 1, q}, {'(', 1}, {')', 1}, {dot, 1}], {2, 1}}]].

what_else_is_typed_is_evaluated_test_() ->
    {ok, Tokens, _} = erl_scan:string("erlang:send(distsec_shell, evaluated)."),
    {timeout, 2 * ?PATIENCE_S, ?_assertEqual(evaluated, at_a_terminal_that_answers({ok, Tokens, {2, 1}}))}.

expressions_keep_their_bindings_until_they_are_forgotten_test_() ->
    {timeout, 2 * ?PATIENCE_S, fun expressions_keep_their_bindings_until_they_are_forgotten/0}.

expressions_keep_their_bindings_until_they_are_forgotten() ->
    Owner = self(),
    Pid = spawn(fun() -> distsec_shell_remote:evaluator(Owner) end),
    ?assertEqual({value, 40}, ask(Pid, "X = 40.")),
    ?assertEqual({value, 42}, ask(Pid, "X + 2.")),
    ?assertMatch({raised, error, {badmatch, 41}, _}, ask(Pid, "X = 41.")),
    ?assertEqual({value, ok}, ask(Pid, "f(X).")),
    ?assertEqual({value, 41}, ask(Pid, "X = 41.")),
    ?assertEqual({value, ok}, ask(Pid, "f().")),
    ?assertMatch({raised, error, {unbound, 'X'}, _}, ask(Pid, "X.")),
    ?assertMatch({raised, error, {would_stop_this_node, _}, _}, ask(Pid, "q().")),
    ?assertMatch({raised, error, {no_shell_command, {nothing, 1}}, _}, ask(Pid, "nothing(1).")),
    ?assertMatch({raised, throw, stone, _}, ask(Pid, "throw(stone).")),
    exit(Pid, kill).

an_evaluator_ends_with_who_asked_for_it_test_() ->
    {timeout, ?PATIENCE_S, fun an_evaluator_ends_with_who_asked_for_it/0}.

an_evaluator_ends_with_who_asked_for_it() ->
    Test = self(),
    {Owner, OwnerMonitor} =
        spawn_monitor(fun() ->
                              Self = self(),
                              Run = fun() -> distsec_shell_remote:evaluator(Self) end,
                              Test ! {evaluator, spawn(Run)},
                              receive done -> ok end
                      end),
    Evaluator = receive {evaluator, Pid} -> Pid end,
    Monitor = monitor(process, Evaluator),
    Owner ! done,
    receive {'DOWN', OwnerMonitor, _, _, _} -> ok end,
    receive {'DOWN', Monitor, _, _, Why} -> ?assertEqual(normal, Why) end.

ask(Pid, Text) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    Pid ! {self(), evaluate, Expressions},
    receive {Pid, Answer} -> Answer after ?PATIENCE_S * 1000 -> timeout end.

%% What comes of a shell whose terminal answers its first question with Answer, and then no more.
at_a_terminal_that_answers(Answer) ->
    Test = self(),
    register(distsec_shell, self()),
    Terminal = spawn(fun() -> terminal(Answer) end),
    Attacher = spawn(fun() ->
                             group_leader(Terminal, self()),
                             Test ! {shell, distsec_shell_remote:attach()}
                     end),
    Shell = receive {shell, Pid} -> Pid after ?PATIENCE_S * 1000 -> error({no_shell, Attacher}) end,
    Monitor = monitor(process, Shell),
    Result = receive
                 evaluated -> evaluated;
                 leave -> receive {'DOWN', Monitor, _, _, _} -> left after ?PATIENCE_S * 1000 -> stays end
             after ?PATIENCE_S * 1000 -> nothing
             end,
    unregister(distsec_shell),
    exit(Terminal, kill),
    exit(Shell, kill),
    Result.

terminal(Answer) ->
    receive
        {io_request, From, Id, {get_until, _, _, _, _, _}} when Answer =/= silent ->
            From ! {io_reply, Id, Answer},
            terminal(silent);
        {io_request, _, _, {get_until, _, _, _, _, _}} ->
            terminal(silent);
        {io_request, From, Id, getopts} ->
            From ! {io_reply, Id, [{echo, true}, {binary, false}, {encoding, unicode}]},
            terminal(Answer);
        {io_request, From, Id, {get_geometry, _}} ->
            From ! {io_reply, Id, {error, enotsup}},
            terminal(Answer);
        {io_request, From, Id, _} ->
            From ! {io_reply, Id, ok},
            terminal(Answer);
        _ ->
            terminal(Answer)
    end.
