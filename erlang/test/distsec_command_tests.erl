-module(distsec_command_tests).
-include_lib("eunit/include/eunit.hrl").

%% A process of an agent that has ended has checked that 7 is newer than what is in force, and then stands
%% still; the next agent's puts 8 in force.
an_older_policy_never_comes_into_force_after_a_newer_one_test_() ->
    {setup, fun start/0, fun stop/1,
     fun(Node) -> {timeout, 120, fun() -> an_older_policy_comes_late(Node) end} end}.

an_older_policy_comes_late(#{directory := Directory, document := Document}) ->
    Mark = filename:join(Directory, "policy.mark"),
    %% Reading the mark comes after the generation was compared, and lasts as long as this pipe is open.
    "" = os:cmd("mkfifo -m 600 " ++ Mark),
    {Slow, _} = Older = push(Document(7)),
    {ok, Pipe} = prim_file:open(Mark, [write, raw]), % returns when the pipe is being read
    ok = prim_file:rename(Mark, Mark ++ ".pipe"),
    ok = distsec_mark:raise(Directory, 6),
    {Next, _} = Newer = push(Document(8)),
    distsec_test_registry:await(fun() -> in_force(Next) =:= 8 orelse waits(Next) end),
    ?assert(is_process_alive(Slow)),
    ok = prim_file:write(Pipe, "distsec_mark 1 6\n"),
    ok = prim_file:close(Pipe),
    _ = ended(Older),
    ?assertMatch({ok, #{generation := 8}}, ended(Newer)),
    ?assertMatch(#{policy_generation := 8}, distsec_policy:summary()),
    ?assertEqual({ok, 8}, distsec_mark:read(Directory)),
    ?assertEqual({error, #{reason => generation}}, ended(push(Document(7)))).

%% Whoever had the turn and was killed does not keep it.
a_turn_ends_with_its_process_test_() ->
    {setup, fun start/0, fun stop/1,
     fun(Node) -> {timeout, 120, fun() -> a_turn_ends_with_its_process(Node) end} end}.

a_turn_ends_with_its_process(#{document := Document}) ->
    Test = self(),
    {Pid, Monitor} = spawn_monitor(fun() ->
                                           true = register(distsec_turn, self()),
                                           Test ! has_it,
                                           receive never -> ok end
                                   end),
    receive has_it -> ok end,
    {Waiting, _} = Newer = push(Document(8)),
    distsec_test_registry:await(fun() -> waits(Waiting) end),
    ?assertMatch(#{policy_generation := 0}, distsec_policy:summary()),
    exit(Pid, kill),
    receive {'DOWN', Monitor, process, Pid, killed} -> ok end,
    ?assertMatch({ok, #{generation := 8}}, ended(Newer)),
    ?assertMatch(#{policy_generation := 8}, distsec_policy:summary()).

push(Document) ->
    spawn_monitor(fun() -> exit({done, distsec_command:run(policy, #{document => Document})}) end).

ended({Pid, Monitor}) ->
    receive {'DOWN', Monitor, process, Pid, {done, Answer}} -> Answer end.

in_force(Pid) ->
    #{policy_generation := Generation} = distsec_policy:summary(),
    not is_process_alive(Pid) andalso Generation.

waits(Pid) ->
    whereis(distsec_turn) =/= Pid
        andalso process_info(Pid, current_function) =:= {current_function, {distsec_turn, take, 1}}.

start() ->
    Directory = string:trim(os:cmd("mktemp -d")),
    {Public, Private} = distsec_policy_tests:key(),
    Guard = #{version => 1, node => <<"a@h">>, cluster => <<"demo">>, floor => 0,
              policy_key => base64:encode(Public)},
    persistent_term:put({distsec, guard}, #{guard => Guard, directory => Directory, launch => <<"1">>}),
    _ = persistent_term:erase({distsec, policy}),
    ok = distsec_clock:new(),
    ok = distsec_count:new(),
    Test = self(),
    {Tables, Monitor} = spawn_monitor(fun() ->
                                              ok = distsec_ring:new(),
                                              ok = distsec_links:new(),
                                              ok = distsec_attempts:new(),
                                              {ok, _} = distsec_watch:start_link(),
                                              Test ! ready,
                                              receive stop -> exit(shutdown) end
                                      end),
    receive ready -> ok; {'DOWN', Monitor, process, Tables, Why} -> error(Why) end,
    #{directory => Directory, tables => {Tables, Monitor},
      document => fun(Generation) -> distsec_policy_tests:document(policy(Generation), Private) end}.

policy(Generation) ->
    #{version => 1, cluster => <<"demo">>, generation => Generation, issued_at => 1000, connect => none,
      require_identity => true, denied => [], revoked => [], peers => [], rules => []}.

stop(#{directory := Directory, tables := {Tables, Monitor}}) ->
    Tables ! stop,
    receive {'DOWN', Monitor, process, Tables, _} -> ok end,
    _ = persistent_term:erase({distsec, guard}),
    _ = persistent_term:erase({distsec, policy}),
    "" = os:cmd("rm -r " ++ Directory),
    ok.
