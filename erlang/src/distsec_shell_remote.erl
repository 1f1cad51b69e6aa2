%% The node's half of `distsec shell`, run in the managed node over the link that the shell has set
%% up: the process that its interactive shell reads from, and the one that evaluates for it.
-module(distsec_shell_remote).

-export([attach/0, evaluator/1, command/2]).

%% ---- a terminal ---------------------------------------------------------------------------------

%% Starts a shell whose terminal is the caller's group leader, which lives in the operator's VM.
%% Between the two stands a process of our own: where input ends, shell:server/2 of OTP 25 halts the
%% VM that it runs in, which is this node, and `q()` means the same on every release. Here both end
%% the shell.
-spec attach() -> pid().
attach() ->
    Terminal = group_leader(),
    Leader = spawn(fun() -> receive {shell, Pid} -> lead(Terminal, Pid) end end),
    true = group_leader(Leader, self()),
    Shell = shell:start(),
    true = group_leader(Terminal, self()),
    Leader ! {shell, Shell},
    Shell.

lead(Terminal, Shell) ->
    _ = [monitor(process, Pid) || Pid <- [Terminal, Shell]],
    lead(Terminal, Shell, #{}).

%% `Asked`: requests for a command that are on their way, and whom each answer is for.
lead(Terminal, Shell, Asked) ->
    receive
        {io_request, From, ReplyAs, {get_until, _, _, erl_scan, tokens, _} = Request} ->
            Id = make_ref(),
            Terminal ! {io_request, self(), Id, Request},
            lead(Terminal, Shell, Asked#{Id => {From, ReplyAs}});
        {io_request, _, _, _} = Request ->
            Terminal ! Request,
            lead(Terminal, Shell, Asked);
        {io_reply, Id, Reply} when is_map_key(Id, Asked) ->
            {{From, ReplyAs}, Left} = maps:take(Id, Asked),
            From ! {io_reply, ReplyAs, command_or_end(Reply, node(Terminal))},
            lead(Terminal, Shell, Left);
        {'DOWN', _, process, Pid, _} when Pid =:= Terminal; Pid =:= Shell ->
            ok;
        _ ->
            lead(Terminal, Shell, Asked)
    end.

command_or_end(eof, Operator) -> leave(Operator);
command_or_end({eof, _}, Operator) -> leave(Operator);
command_or_end({ok, [{atom, _, q}, {'(', _}, {')', _}, {dot, _}], _}, Operator) -> leave(Operator);
command_or_end(Reply, _) -> Reply.

leave(Operator) ->
    {distsec_shell, Operator} ! leave,
    {error, terminated}.

%% ---- expressions --------------------------------------------------------------------------------

%% Evaluates what Owner sends, one after the other with the same bindings, until Owner is gone.
%% Spawned by it over the link, so that what the expressions print goes to the operator.
-spec evaluator(pid()) -> ok.
evaluator(Owner) ->
    evaluate(Owner, monitor(process, Owner), erl_eval:new_bindings()).

evaluate(Owner, Monitor, Bindings) ->
    receive
        {Owner, evaluate, Expressions} ->
            {Answer, After} = value(Expressions, Bindings),
            Owner ! {self(), Answer},
            evaluate(Owner, Monitor, After);
        {'DOWN', Monitor, process, Owner, _} ->
            ok
    end.

%% `f()` and `f(Variable)` forget, as at a prompt.
value([{call, _, {atom, _, f}, []}], _) ->
    {{value, ok}, erl_eval:new_bindings()};
value([{call, _, {atom, _, f}, [{var, _, Variable}]}], Bindings) ->
    {{value, ok}, erl_eval:del_binding(Variable, Bindings)};
value(Expressions, Bindings) ->
    try erl_eval:exprs(Expressions, Bindings, {value, fun ?MODULE:command/2}) of
        {value, Value, After} -> {{value, Value}, After}
    catch
        Class:Reason:Stack -> {{raised, Class, Reason, Stack}, Bindings}
    end.

%% A function without a module is one of the shell's own (shell_default(3)), as it is at a prompt.
-spec command(atom(), [term()]) -> term().
command(q, []) ->
    error({would_stop_this_node, "init:stop() does that"});
command(Name, Arguments) ->
    Arity = length(Arguments),
    case [Module || Module <- [user_default, shell_default],
                    {module, Module} =:= code:ensure_loaded(Module),
                    erlang:function_exported(Module, Name, Arity)] of
        [Module | _] -> apply(Module, Name, Arguments);
        [] -> error({no_shell_command, {Name, Arity}})
    end.
