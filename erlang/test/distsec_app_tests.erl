-module(distsec_app_tests).
-include_lib("eunit/include/eunit.hrl").

%% With a supervisor of the agent's that cannot be started.
a_guard_that_ended_comes_back_while_the_agent_does_not_test_() ->
    {setup, fun start/0, fun stop/1,
     fun(Squatter) -> {timeout, 120, fun() -> a_guard_comes_back(Squatter) end} end}.

a_guard_comes_back(Squatter) ->
    ok = distsec_app:boot(),
    First = there(distsec_guard_sup),
    _ = there(distsec_attempts),
    exit(First, kill),
    await(fun() -> lists:member(whereis(distsec_guard_sup), [undefined, First]) =:= false end),
    {ok, _} = distsec_attempts:inbound(self(), #{direction => in, address => {{127, 0, 0, 1}, 1}}),
    ?assertEqual(Squatter, whereis(distsec_sup)),
    %% And the agent's part when it can be started.
    exit(Squatter, kill),
    await(fun() -> lists:member(whereis(distsec_sup), [undefined, Squatter]) =:= false end),
    ?assertEqual([], supervisor:which_children(distsec_sup)).

there(Name) ->
    await(fun() -> is_pid(whereis(Name)) end),
    whereis(Name).

await(Condition) ->
    distsec_test_registry:await(Condition).

start() ->
    Guard = #{version => 1, node => <<"a@h">>, cluster => <<"demo">>, kind => shell},
    persistent_term:put({distsec, guard}, #{guard => Guard, directory => "/nonexistent", launch => <<"1">>}),
    ok = distsec_clock:new(),
    ok = distsec_count:new(),
    Squatter = spawn(fun() -> receive never -> ok end end),
    true = register(distsec_sup, Squatter),
    Squatter.

stop(Squatter) ->
    Booted = whereis(distsec_app),
    Ends = [{Pid, monitor(process, Pid)}
            || Pid <- [Booted, Squatter, whereis(distsec_guard_sup), whereis(distsec_sup)], is_pid(Pid)],
    _ = is_pid(Booted) andalso exit(Booted, kill),
    exit(Squatter, kill),
    [receive {'DOWN', Monitor, process, Pid, _} -> ok end || {Pid, Monitor} <- Ends],
    _ = code:unstick_dir(filename:dirname(code:which(distsec_app))),
    _ = persistent_term:erase({distsec, guard}),
    ok.
