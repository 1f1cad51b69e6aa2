%% How many attempts there may be at a time, and for how long.
-module(distsec_attempts_limits_tests).
-include_lib("eunit/include/eunit.hrl").

-import(distsec_test_registry, [await/1, await_clean/0, facts/2, finish/2, half_open/0, inbound/1,
                                registry_test_/1, soon/2, told/0, told/1, worker/0]).

-define(PATIENCE_MS, 60000).
-define(LINGER_MS, 500). % distsec_attempts'

%% ---- too many, and too slow ---------------------------------------------------------------------

the_half_open_of_one_source_give_way_oldest_first_and_are_ended_test_() ->
    registry_test_(
      fun(_) ->
              {ok, Listen} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}, {active, false}]),
              {ok, Port} = inet:port(Listen),
              {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, [{active, false}]),
              {ok, Socket} = gen_tcp:accept(Listen),
              First = worker(),
              {ok, _} = distsec_attempts:inbound(First, (facts(in, <<"first">>))#{socket => Socket}),
              Others = [inbound(integer_to_binary(N)) || N <- lists:seq(2, 64)],
              ?assertEqual([], told()),
              {Last, _} = inbound(<<"last">>),
              ?assertEqual([{<<"first">>, flood_dropped}], told()),
              ?assertEqual({error, closed}, gen_tcp:recv(Client, 0, ?PATIENCE_MS)),
              ?assertEqual(64, half_open()),
              await(fun() -> not is_process_alive(First) end), % killed, since it does not end itself
              await(fun() -> length(distsec_attempts:all()) =:= 64 end),
              ?assertEqual([{<<"first">>, flood_dropped}], told()),
              [finish(Pid, normal) || {Pid, _} <- Others],
              finish(Last, normal),
              await_clean(),
              gen_tcp:close(Listen)
      end).

%% A peer that keeps its socket open would else hold up ssl:close/1, and its place, for 5 s.
what_is_refused_has_little_time_to_go_test_() ->
    registry_test_(fun(_) -> ?assert(soon(fun closed_after_a_refusal/0, 1600)) end).

closed_after_a_refusal() ->
    Name = integer_to_binary(erlang:unique_integer([positive])),
    {ok, Listen} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}, {active, false}]),
    {ok, Port} = inet:port(Listen),
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, [{active, false}]),
    {ok, Socket} = gen_tcp:accept(Listen),
    Pid = worker(),
    {ok, Id} = distsec_attempts:inbound(Pid, (facts(in, Name))#{socket => Socket}),
    Began = erlang:monotonic_time(millisecond),
    distsec_attempts:refuse(Id, revoked, #{}),
    ?assertEqual({error, closed}, gen_tcp:recv(Client, 0, ?PATIENCE_MS)),
    Took = erlang:monotonic_time(millisecond) - Began,
    ?assert(Took >= ?LINGER_MS), % time to be told so
    await_clean(),
    ?assertNot(is_process_alive(Pid)),
    ?assertEqual([revoked], told(Name)),
    [gen_tcp:close(S) || S <- [Client, Socket, Listen]],
    Took.

what_is_up_is_not_half_open_test_() ->
    registry_test_(
      fun(_) ->
              Links = [inbound(integer_to_binary(N)) || N <- lists:seq(1, 64)],
              ?assertEqual(64, half_open()),
              [distsec_attempts:stage(Id, up) || {_, Id} <- Links],
              ?assertEqual(0, half_open()),
              [finish(Pid, normal) || {Pid, _} <- Links],
              await_clean()
      end).

whom_we_dial_is_not_counted_among_the_half_open_test_() ->
    registry_test_(
      fun(_) ->
              Pid = worker(),
              {ok, _} = distsec_attempts:outbound(Pid, facts(out, <<"x">>)),
              ?assertEqual(0, half_open()),
              finish(Pid, normal),
              await_clean()
      end).

a_handshake_that_outlives_its_deadline_is_ended_and_told_of_once_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, Id} = inbound(<<"x">>),
              {_, Up} = inbound(<<"up">>),
              distsec_attempts:stage(Up, up),
              [distsec_attempts ! {deadline, Of} || Of <- [Id, Up]], % as its timers do
              await(fun() -> not is_process_alive(Pid) end),
              await(fun() -> length(distsec_attempts:all()) =:= 1 end),
              ?assertEqual([{<<"x">>, handshake_timeout}], told()),
              [finish(Worker, normal) || {_, Worker, _, _} <- distsec_attempts:all()]
      end).

%% ---- one certificate does not fill its address ----------------------------------------------------

%% Whoever parks handshakes behind one admitted certificate pushes out its own, not a newcomer that has
%% shown nothing yet.
parked_handshakes_of_one_certificate_push_out_no_newcomer_test_() ->
    registry_test_(
      fun(_) ->
              Parked = [begin
                            {Pid, Id} = inbound(<<"parker">>),
                            distsec_attempts:learn(Id, #{serial => <<"aa">>}),
                            distsec_attempts:stage(Id, admitted),
                            Pid
                        end || _ <- lists:seq(1, 64)],
              {Genuine, _} = inbound(<<"genuine">>),
              Later = [Pid || {Pid, _} <- [inbound(<<"later">>) || _ <- lists:seq(1, 50)]],
              ?assertEqual([], told(<<"genuine">>)),
              ?assertEqual(51, length(told(<<"parker">>))),
              [finish(Pid, normal) || Pid <- [Genuine | Parked ++ Later]],
              await_clean()
      end).
