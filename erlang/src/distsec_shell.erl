%% The operator's VM of `distsec shell NODE`: hidden, listening to nobody, guarded like a node
%% (distsec_guard, `kind => shell`), with a policy that knows one peer. It links with that one and
%% gives its shell a terminal (start/0), or has it evaluate an expression (evaluate/0) or the lines
%% of the standard input (lines/0). How it ends is the exit code of the command (docs/commands.md).
-module(distsec_shell).

-export([start/0, evaluate/0, lines/0]).

-define(RAISED, 1).
-define(NO_EXPRESSION, 65). % EX_DATAERR of sysexits.h
-define(NO_LINK, 70).       % EX_SOFTWARE, as errors.CommandFailed
-define(TOO_SLOW, 124).     % as timeout(1)
-define(HUNG_UP, 129).      % 128 + SIGHUP, as shells say it
-define(MAX_TEXT_BYTES, 1048576).
%% Of the process that takes and shows values: a gigabyte.
-define(MAX_HEAP_WORDS, 134217728).
-define(KILLED_MS, 1000).
-define(LOOK_EVERY_MS, 2000).

%% ---- a terminal ---------------------------------------------------------------------------------

%% Called by user_sup (`-user distsec_shell`) in place of user_drv:start/0, while the kernel starts:
%% the link first, so that one that cannot be had is told in one line, and not by a shell.
-spec start() -> ok.
start() ->
    Node = linked(),
    _ = spawn(fun() -> attached(Node) end),
    Remote = {distsec_shell_remote, attach, []},
    _ = case list_to_integer(erlang:system_info(otp_release)) of
            Release when Release >= 26 ->
                user_drv:start(#{initial_shell => {remote, atom_to_list(Node), Remote}});
            _ ->
                {Module, Function, Arguments} = Remote,
                Pid = user_drv:start('tty_sl -c -e', {Node, Module, Function, Arguments}),
                spawn(fun() -> complete_there(Pid, Node) end)
        end,
    ok.

%% Ends the VM when the node is gone, or when its operator wants to leave (distsec_shell_remote)
%% or has closed the window. For that there is a signal, unless the shell was started by nohup or is
%% in no foreground; and not every release notices that it can read no more.
attached(Node) ->
    true = register(?MODULE, self()),
    true = monitor_node(Node, true),
    attached(Node, has_terminal()).

attached(Node, HadTerminal) ->
    receive
        leave -> halt(0);
        {nodedown, Node} ->
            case init:get_status() of
                {stopping, _} -> ok; % by a SIGTERM, which takes the link down too
                _ -> stop(?NO_LINK, "the link with ~ts is down", [Node])
            end
    after ?LOOK_EVERY_MS ->
            case HadTerminal andalso not has_terminal() of
                true -> halt(?HUNG_UP);
                false -> attached(Node, HadTerminal)
            end
    end.

%% Whether there is a controlling terminal (tty(4)).
has_terminal() ->
    case file:open("/dev/tty", [read, raw]) of
        {ok, Terminal} -> ok =:= file:close(Terminal);
        {error, _} -> false
    end.

%% OTP 25 completes the node's names only for -remsh; newer ones by themselves.
complete_there(Driver, Node) ->
    Expand = fun(Before) -> rpc:call(Node, edlin_expand, expand, [Before]) end,
    case user_drv:interfaces(Driver) of
        [{current_group, Group}] when is_pid(Group) ->
            io:setopts(Group, [{expand_fun, Expand}]);
        _ ->
            case is_process_alive(Driver) of
                true -> receive after 20 -> complete_there(Driver, Node) end;
                false -> ok
            end
    end.

%% ---- without one --------------------------------------------------------------------------------

%% `-s distsec_shell evaluate`: the expressions in the file `expression`, and the value of the last.
-spec evaluate() -> ok.
evaluate() ->
    run(fun(Timeout, _Prompt) ->
                File = filename:join(distsec_guard:directory(), "expression"),
                Expressions = case file:read_file(File) of
                                  {ok, Text} -> parsed(Text);
                                  {error, _} -> {error, "there is none"}
                              end,
                case Expressions of
                    {ok, Parsed} -> show(ask(evaluator(linked()), Parsed, Timeout)), 0;
                    {error, Why} -> stop(?NO_EXPRESSION, "--eval: ~ts", [Why])
                end
        end).

%% `-s distsec_shell lines`: expressions from the standard input, each ended by a dot. Where nobody
%% watches (no prompt) the first one that fails is the last.
-spec lines() -> ok.
lines() ->
    run(fun(Timeout, Prompt) ->
                Node = linked(),
                Shown = case Prompt of
                            true -> fun(N) -> io_lib:format("(~ts)~b> ", [Node, N]) end;
                            false -> fun(_) -> "" end
                        end,
                read(#{evaluator => evaluator(Node), node => Node, timeout => Timeout,
                       prompt => Shown, watched => Prompt, number => 1, line => 1, rest => ""})
        end).

%% In a process whose memory is bounded: what a node answers with may be of any size.
run(Fun) ->
    {ok, [[Seconds, Prompt]]} = init:get_argument(distsec_shell),
    Timeout = case list_to_integer(Seconds) of 0 -> infinity; N -> N * 1000 end,
    _ = spawn(fun() -> halt(outcome(Fun, Timeout, Prompt =:= "prompt")) end),
    ok.

outcome(Fun, Timeout, Prompt) ->
    {_, Monitor} = spawn_monitor(fun() -> exit({done, bounded(Fun, Timeout, Prompt)}) end),
    receive
        {'DOWN', Monitor, process, _, {done, Code}} ->
            Code;
        {'DOWN', Monitor, process, _, killed} ->
            say("distsec: what the node answered is too large to be shown\n"),
            ?NO_LINK;
        {'DOWN', Monitor, process, _, Why} ->
            say(["distsec: the shell failed: ", distsec_report:text(Why), $\n]),
            ?NO_LINK
    end.

bounded(Fun, Timeout, Prompt) ->
    _ = process_flag(max_heap_size,
                     #{size => ?MAX_HEAP_WORDS, kill => true, error_logger => false}),
    _ = [io:setopts(Device, [{encoding, unicode}]) || Device <- [user, standard_error]],
    true = group_leader(distsec_shell_output:start(), self()),
    Fun(Timeout, Prompt).

read(#{number := Number, prompt := Prompt, line := Line, rest := Rest} = State) ->
    case gather(Prompt(Number), Rest, Line) of
        eof ->
            0;
        {ok, [{atom, _, q}, {'(', _}, {')', _}, {dot, _}], _, _} ->
            0;
        {ok, Tokens, End, More} ->
            Next = State#{line := End, rest := More, number := Number + 1},
            case parsed_tokens(Tokens) of
                {ok, Expressions} -> answer(Expressions, Next);
                {error, Why} -> told(Next, ?NO_EXPRESSION, Why)
            end;
        {error, Why, End} ->
            told(State#{line := End, rest := "", number := Number + 1}, ?NO_EXPRESSION, Why)
    end.

answer(Expressions, #{evaluator := Evaluator, timeout := Timeout, node := Node,
                      watched := Watched} = State) ->
    case {ask(Evaluator, Expressions, Timeout), Watched} of
        {Answer, false} -> show(Answer), read(State);
        {{value, _} = Answer, true} -> show(Answer), read(State);
        {{ended, _} = Answer, true} ->
            distsec_shell_output:write(failure(Answer)),
            read(State#{evaluator := evaluator(Node)});
        {Answer, true} ->
            distsec_shell_output:write(failure(Answer)), % in order with the prompt that follows
            read(State)
    end.

told(#{watched := true} = State, _, Why) ->
    distsec_shell_output:write(["distsec: ", Why, $\n]),
    read(State);
told(_, Code, Why) ->
    stop(Code, "~ts", [Why]).

%% The tokens up to the dot of an expression, the line after it, and what is left of its last line.
%% The last expression of all needs no dot.
gather(Prompt, Text, Line) ->
    gather(Prompt, Text, [], Line, 0).

gather(Prompt, Text, Continuation, Line, Size) ->
    case erl_scan:tokens(Continuation, Text, Line) of
        {done, {ok, Tokens, End}, Rest} -> {ok, Tokens, End, Rest};
        {done, {error, Info, End}, _} -> {error, scan_error(Info), End};
        {done, {eof, _}, _} -> eof;
        {more, _} when Size > ?MAX_TEXT_BYTES -> {error, "an expression is too long", Line};
        {more, More} ->
            case io:get_line(user, Prompt) of
                eof -> at_end(More, Line);
                {error, _} -> eof;
                Next -> gather(continued(Prompt), Next, More, Line, Size + length(Next))
            end
    end.

continued("") -> "";
continued(_) -> "   ".

at_end(Continuation, Line) ->
    case erl_scan:tokens(Continuation, " .\n", Line) of
        {done, {ok, [{dot, _}], _}, _} -> eof; % only blanks and comments
        {done, {ok, Tokens, End}, _} -> {ok, Tokens, End, ""};
        {done, {error, Info, End}, _} -> {error, scan_error(Info), End};
        _ -> {error, "the input ends within an expression", Line}
    end.

parsed(Text) ->
    case unicode:characters_to_list(Text) of
        List when is_list(List) ->
            case erl_scan:string(List) of
                {ok, [], _} -> {error, "there is none"};
                {ok, Tokens, End} -> parsed_tokens(dotted(Tokens, End));
                {error, Info, _} -> {error, scan_error(Info)}
            end;
        _ ->
            {error, "it is not UTF-8"}
    end.

dotted(Tokens, End) ->
    case lists:last(Tokens) of
        {dot, _} -> Tokens;
        _ -> Tokens ++ [{dot, End}]
    end.

parsed_tokens(Tokens) ->
    case erl_parse:parse_exprs(Tokens) of
        {ok, Expressions} -> {ok, Expressions};
        {error, Info} -> {error, scan_error(Info)}
    end.

scan_error({Where, Module, Description}) ->
    Line = case Where of
               {L, _} -> L;
               _ -> Where
           end,
    io_lib:format("line ~p: ~ts", [Line, Module:format_error(Description)]).

%% ---- the node -----------------------------------------------------------------------------------

%% The node, once it is linked. Who it is, its certificate has shown in the handshake.
linked() ->
    Target = maps:get(target, distsec_guard:guard()),
    Node = binary_to_atom(Target, utf8),
    case net_kernel:connect_node(Node) of
        true -> Node;
        _ -> stop(?NO_LINK, "no link with ~ts: ~ts", [Target, refusal()])
    end.

%% What this side has refused it for, if it was this side.
refusal() ->
    case distsec_ring:read(refusals, 0, 64, pass) of
        {[], _} -> "it refused this shell, or does not answer; see `distsec events`";
        {Events, _} ->
            {_, #{reason := Reason} = Event} = lists:last(Events),
            case maps:get(detail, Event, undefined) of
                undefined -> atom_to_list(Reason);
                Detail -> io_lib:format("~s (~ts)", [Reason, Detail])
            end
    end.

evaluator(Node) ->
    spawn_opt(Node, distsec_shell_remote, evaluator, [self()], [monitor]).

ask({Pid, Monitor}, Expressions, Timeout) ->
    Pid ! {self(), evaluate, Expressions},
    receive
        {Pid, Answer} ->
            Answer;
        {'DOWN', Monitor, process, Pid, noconnection} ->
            stop(?NO_LINK, "the link with ~ts is down", [node(Pid)]);
        {'DOWN', Monitor, process, Pid, Why} ->
            {ended, Why}
    after Timeout ->
            exit(Pid, kill),
            receive {'DOWN', Monitor, process, Pid, _} -> ok after ?KILLED_MS -> ok end,
            stop(?TOO_SLOW, "no value within ~b s; the evaluation was ended", [Timeout div 1000])
    end.

%% A value is shown, and whatever else there is ends the command.
show({value, Value}) ->
    distsec_shell_output:write(io_lib:format("~tp~n", [Value]));
show(Answer) ->
    say(failure(Answer)),
    halt(?RAISED).

failure({raised, Class, Reason, Stack}) ->
    Ours = fun(Module, _, _) -> Module =:= distsec_shell_remote orelse Module =:= erl_eval end,
    Text = try erl_error:format_exception(Class, Reason, Stack, #{stack_trim_fun => Ours})
           catch _:_ -> io_lib:format("~0tP", [{Class, Reason}, 30])
           end,
    ["** ", Text, $\n];
failure({ended, Why}) ->
    io_lib:format("distsec: the process that evaluated it has ended: ~0tP~n", [Why, 30]).

%% ---- the end ------------------------------------------------------------------------------------

-spec stop(byte(), string(), [term()]) -> no_return().
stop(Code, Format, Arguments) ->
    say(["distsec: ", io_lib:format(Format, Arguments), $\n]),
    halt(Code).

say(Text) ->
    _ = io:put_chars(standard_error, distsec_shell_output:escape(Text)),
    ok.
