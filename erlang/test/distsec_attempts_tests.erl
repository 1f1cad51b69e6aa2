-module(distsec_attempts_tests).
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-export([prop_each_attempt_is_told_of_at_most_once_and_leaves_nothing/0]).

-define(PATIENCE_MS, 5000).

%% ---- what belongs to a test ---------------------------------------------------------------------

%% A registry and its tables, as distsec_app makes them.
begin_registry() ->
    Owner = self(),
    {Holder, Monitor} = spawn_monitor(
                          fun() ->
                                  ok = distsec_count:new(),
                                  ok = distsec_ring:new(),
                                  ok = distsec_attempts:new(),
                                  ok = distsec_futile:new(),
                                  process_flag(trap_exit, true),
                                  {ok, _} = distsec_attempts:start_link(),
                                  Owner ! {self(), ready},
                                  hold()
                          end),
    receive {Holder, ready} -> ok; {'DOWN', Monitor, _, _, Why} -> error(Why) end,
    demonitor(Monitor, [flush]),
    Holder.

hold() ->
    receive
        {'EXIT', _, _} -> hold();
        {restart, From} ->
            {ok, Pid} = distsec_attempts:start_link(),
            From ! {restarted, Pid},
            hold();
        stop ->
            gen_server:stop(distsec_attempts)
    end.

end_registry(Holder) ->
    Monitor = monitor(process, Holder),
    _ = whereis(distsec_attempts) =:= undefined orelse (Holder ! stop),
    _ = whereis(distsec_attempts) =:= undefined andalso exit(Holder, kill),
    receive {'DOWN', Monitor, _, _, _} -> ok end.

registry_test_(Test) ->
    {setup, fun begin_registry/0, fun end_registry/1, fun(Holder) -> {timeout, 60, fun() -> Test(Holder) end} end}.

await(Condition) ->
    await(Condition, erlang:monotonic_time(millisecond) + ?PATIENCE_MS).

await(Condition, Deadline) ->
    case Condition() of
        true -> ok;
        Seen ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({waited_too_long, Seen}),
            receive after 2 -> await(Condition, Deadline) end
    end.

%% Someone who does a handshake, and ends as told.
worker() ->
    spawn(fun() -> receive {finish, Why} -> exit(Why) end end).

finish(Pid, Why) ->
    Pid ! {finish, Why}.

facts(Direction, Name) ->
    #{direction => Direction, address => {{127, 0, 0, 1}, 40000}, identity => Name}.

inbound(Name) ->
    Pid = worker(),
    {ok, Id} = distsec_attempts:inbound(Pid, facts(in, Name)),
    {Pid, Id}.

%% {Identity, Reason} of every refusal that was told of, in order.
told() ->
    {Events, _} = distsec_ring:read(refusals, 0, 100000, pass),
    [{Identity, Reason} || {_, #{type := refusal, identity := Identity, reason := Reason}} <- Events].

told(Identity) ->
    [Reason || {I, Reason} <- told(), I =:= Identity].

%% Nothing of any attempt is left anywhere.
is_clean() ->
    #{half_open := HalfOpen, watched := Watched} = sys:get_state(distsec_attempts),
    {monitors, Monitors} = process_info(whereis(distsec_attempts), monitors),
    case {distsec_attempts:all(), distsec_halfopen:size(HalfOpen), maps:size(Watched), Monitors} of
        {[], 0, 0, []} -> true;
        Left -> Left
    end.

half_open() ->
    #{half_open := HalfOpen} = sys:get_state(distsec_attempts),
    distsec_halfopen:size(HalfOpen).

%% ---- one event ----------------------------------------------------------------------------------

an_attempt_that_is_refused_again_and_again_is_told_of_once_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, Id} = inbound(<<"x">>),
              [distsec_attempts:refuse(Id, Reason, #{}) || Reason <- [revoked, closed, malformed]],
              finish(Pid, setup_timer_timeout),
              await(fun is_clean/0),
              ?assertEqual([revoked], told(<<"x">>)),
              distsec_attempts:refuse(Id, closed, #{}), % after its end
              ?assertEqual([revoked], told(<<"x">>))
      end).

who_refuse_one_attempt_at_the_same_time_tell_of_it_once_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, Id} = inbound(<<"x">>),
              Refusing = [spawn_monitor(fun() -> distsec_attempts:refuse(Id, malformed, #{}) end)
                          || _ <- lists:seq(1, 50)],
              [receive {'DOWN', Monitor, _, _, _} -> ok end || {_, Monitor} <- Refusing],
              finish(Pid, normal),
              await(fun is_clean/0),
              ?assertEqual([malformed], told(<<"x">>))
      end).

an_end_that_no_gate_has_told_of_is_told_of_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, _} = inbound(<<"x">>),
              finish(Pid, setup_timer_timeout),
              await(fun is_clean/0),
              ?assertEqual([handshake_timeout], told(<<"x">>))
      end).

a_link_that_came_up_and_ends_is_no_refusal_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, Id} = inbound(<<"x">>),
              distsec_attempts:stage(Id, up),
              finish(Pid, {recv_challenge_reply_failed, bad_cookie}),
              await(fun is_clean/0),
              ?assertEqual([], told(<<"x">>))
      end).

an_attempt_tells_where_it_came_from_and_who_it_was_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, Id} = inbound(<<"x">>),
              distsec_attempts:learn(Id, #{serial => <<"0a">>, claimed => <<"a@h">>, rule => <<"a@h">>}),
              distsec_attempts:refuse(Id, bad_cookie, #{detail => <<"d">>}),
              {[{_, Event}], _} = distsec_ring:read(refusals, 0, 10, pass),
              ?assertMatch(#{direction := in, reason := bad_cookie, address := <<"127.0.0.1:40000">>,
                             identity := <<"x">>, serial := <<"0a">>, claimed := <<"a@h">>, rule := <<"a@h">>,
                             detail := <<"d">>}, Event),
              finish(Pid, normal)
      end).

%% ---- handing over -------------------------------------------------------------------------------

who_hands_an_attempt_over_may_end_and_the_attempt_goes_on_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, Id} = inbound(<<"x">>),
              Next = worker(),
              ok = distsec_attempts:handover(Id, Next),
              finish(Pid, {recv_challenge_reply_failed, bad_cookie}),
              await(fun() -> not is_process_alive(Pid) end),
              ?assertMatch([{Id, Next, tls, _}], distsec_attempts:all()),
              ?assertEqual([], told(<<"x">>)),
              finish(Next, setup_timer_timeout),
              await(fun is_clean/0),
              ?assertEqual([handshake_timeout], told(<<"x">>))
      end).

an_attempt_that_is_handed_to_the_dead_ends_and_is_told_of_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, Id} = inbound(<<"x">>),
              Dead = worker(),
              finish(Dead, normal),
              await(fun() -> not is_process_alive(Dead) end),
              ok = distsec_attempts:handover(Id, Dead),
              await(fun is_clean/0),
              ?assertEqual([closed], told(<<"x">>)),
              finish(Pid, normal)
      end).

nobody_takes_over_what_has_ended_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, Id} = inbound(<<"x">>),
              finish(Pid, normal),
              await(fun is_clean/0),
              ?assertEqual(refused, distsec_attempts:handover(Id, self())),
              ?assertEqual(true, is_clean())
      end).

%% ---- nodes that dial each other -----------------------------------------------------------------

both(First, Second) ->
    Pid = worker(),
    {ok, Id} = distsec_attempts:inbound(worker(), (facts(First, <<"mine">>))#{rule => <<"b@h">>}),
    {ok, _} = distsec_attempts:outbound(Pid, (facts(Second, <<"other">>))#{name => <<"b@h">>}),
    [{_, Worker, _, _}] = [Attempt || {I, _, _, _} = Attempt <- distsec_attempts:all(), I =:= Id],
    finish(Worker, {shutdown, transport_closed}),
    await(fun() -> length(distsec_attempts:all()) =:= 1 end),
    Told = told(<<"mine">>),
    finish(Pid, normal),
    await(fun is_clean/0),
    Told.

one_of_two_attempts_that_cross_is_no_refusal_test_() ->
    registry_test_(fun(_) -> ?assertEqual([], both(in, out)) end).

%% Else whoever keeps one connection open hides all its others behind it.
an_attempt_beside_another_of_the_same_peer_is_one_test_() ->
    registry_test_(fun(_) -> ?assertEqual([closed], both(in, in)) end).

an_attempt_long_after_we_dialled_is_one_test_() ->
    registry_test_(
      fun(_) ->
              Pid = worker(),
              {ok, Old} = distsec_attempts:outbound(Pid, (facts(out, <<"old">>))#{name => <<"b@h">>}),
              #{started_ms := Started} = distsec_attempts:facts(Old),
              distsec_attempts:learn(Old, #{started_ms => Started - 10000}),
              distsec_attempts:stage(Old, up),
              {Late, Id} = inbound(<<"late">>),
              distsec_attempts:learn(Id, #{rule => <<"b@h">>}),
              finish(Late, {shutdown, transport_closed}),
              await(fun() -> length(distsec_attempts:all()) =:= 1 end),
              ?assertEqual([closed], told(<<"late">>)),
              finish(Pid, normal)
      end).

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
              await(fun is_clean/0),
              gen_tcp:close(Listen)
      end).

%% A peer that keeps its socket open would else hold up ssl:close/1, and its place, for 5 s.
what_is_refused_has_little_time_to_go_test_() ->
    registry_test_(
      fun(_) ->
              {ok, Listen} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}, {active, false}]),
              {ok, Port} = inet:port(Listen),
              {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, [{active, false}]),
              {ok, Socket} = gen_tcp:accept(Listen),
              Pid = worker(),
              {ok, Id} = distsec_attempts:inbound(Pid, (facts(in, <<"x">>))#{socket => Socket}),
              distsec_attempts:refuse(Id, revoked, #{}),
              ?assertEqual({error, timeout}, gen_tcp:recv(Client, 0, 100)), % time to be told so
              ?assertEqual({error, closed}, gen_tcp:recv(Client, 0, 1500)),
              await(fun is_clean/0),
              ?assertNot(is_process_alive(Pid)),
              ?assertEqual([revoked], told(<<"x">>)),
              gen_tcp:close(Listen)
      end).

what_is_up_is_not_half_open_test_() ->
    registry_test_(
      fun(_) ->
              Links = [inbound(integer_to_binary(N)) || N <- lists:seq(1, 64)],
              ?assertEqual(64, half_open()),
              [distsec_attempts:stage(Id, up) || {_, Id} <- Links],
              ?assertEqual(0, half_open()),
              [finish(Pid, normal) || {Pid, _} <- Links],
              await(fun is_clean/0)
      end).

whom_we_dial_is_not_counted_among_the_half_open_test_() ->
    registry_test_(
      fun(_) ->
              Pid = worker(),
              {ok, _} = distsec_attempts:outbound(Pid, facts(out, <<"x">>)),
              ?assertEqual(0, half_open()),
              finish(Pid, normal),
              await(fun is_clean/0)
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

%% ---- the registry itself ------------------------------------------------------------------------

without_a_registry_nobody_is_let_in_test() ->
    ?assertEqual(undefined, whereis(distsec_attempts)),
    ?assertEqual(refused, distsec_attempts:inbound(self(), facts(in, <<"x">>))),
    ?assertEqual(refused, distsec_attempts:outbound(self(), facts(out, <<"x">>))),
    ?assertEqual(refused, distsec_attempts:handover(1, self())).

a_registry_that_starts_again_knows_all_attempts_and_misses_no_end_test_() ->
    registry_test_(
      fun(Holder) ->
              {Pending, PendingId} = inbound(<<"pending">>),
              {Gone, _} = inbound(<<"gone">>),
              {Up, UpId} = inbound(<<"up">>),
              distsec_attempts:stage(UpId, up),
              Registry = whereis(distsec_attempts),
              exit(Registry, kill),
              await(fun() -> whereis(distsec_attempts) =:= undefined end),
              finish(Gone, {recv_challenge_reply_failed, bad_cookie}),
              await(fun() -> not is_process_alive(Gone) end),
              distsec_attempts:refuse(PendingId, revoked, #{}), % while there is none
              Holder ! {restart, self()},
              receive {restarted, _} -> ok end,
              await(fun() -> length(distsec_attempts:all()) =:= 2 end),
              ?assertEqual(1, half_open()),
              ?assertEqual([closed], told(<<"gone">>)),
              finish(Pending, closed),
              finish(Up, normal),
              await(fun is_clean/0),
              ?assertEqual([revoked], told(<<"pending">>)),
              ?assertEqual([], told(<<"up">>))
      end).

%% What a registry that was too slow has registered after all does not stay.
an_attempt_that_was_registered_too_late_goes_with_its_process_test_() ->
    registry_test_(
      fun(_) ->
              Pid = worker(),
              sys:suspend(distsec_attempts),
              distsec_attempts ! {'$gen_call', {self(), make_ref()}, {register, Pid, facts(in, <<"x">>)}},
              exit(Pid, kill),
              sys:resume(distsec_attempts),
              await(fun() -> told(<<"x">>) =:= [closed] end),
              await(fun is_clean/0)
      end).

nonsense_does_not_end_the_registry_test_() ->
    registry_test_(
      fun(_) ->
              Registry = whereis(distsec_attempts),
              [distsec_attempts ! Message || Message <- [x, {deadline, 0}, {kill, 0},
                                                         {'DOWN', make_ref(), process, self(), x}]],
              gen_server:cast(distsec_attempts, {up, 0}),
              ?assertEqual(refused, gen_server:call(distsec_attempts, nonsense)),
              ?assertEqual(Registry, whereis(distsec_attempts)),
              ?assertEqual(true, is_clean())
      end).

%% ---- revocation ---------------------------------------------------------------------------------

what_is_denied_is_ended_whether_pending_or_up_and_the_rest_goes_on_test_() ->
    registry_test_(
      fun(_) ->
              Decide = fun(#{identity := <<"bad">>}) -> {deny, revoked, <<"b@h">>};
                          (_) -> {allow, undefined}
                       end,
              {Pending, _} = inbound(<<"bad">>),
              {Up, UpId} = inbound(<<"bad">>),
              distsec_attempts:stage(UpId, up),
              Unknown = worker(),
              {ok, _} = distsec_attempts:inbound(Unknown, maps:remove(identity, facts(in, <<>>))),
              {Good, _} = inbound(<<"good">>),
              distsec_attempts:end_denied(Decide),
              await(fun() -> not is_process_alive(Pending) andalso not is_process_alive(Up) end),
              await(fun() -> length(distsec_attempts:all()) =:= 2 end),
              ?assertEqual([{<<"bad">>, revoked}], told()), % what was up is the watcher's to tell
              ?assert(is_process_alive(Good) andalso is_process_alive(Unknown)),
              [finish(Pid, normal) || Pid <- [Good, Unknown]],
              await(fun is_clean/0)
      end).

%% ---- any sequence -------------------------------------------------------------------------------

%% What may become of one attempt, by several processes and in any order, up to its end.
step() ->
    oneof([{learn, oneof([serial, claimed])}, {stage, oneof([admitted, named])}, {stage, up},
           {refuse, oneof([revoked, closed, malformed])}, told, handover, restart, deadline]).

ending() ->
    oneof([normal, killed, setup_timer_timeout, remarked, {shutdown, refused}, {shutdown, x},
           {recv_challenge_reply_failed, bad_cookie}]).

attempt() ->
    {oneof([in, out]), list(step()), ending()}.

prop_each_attempt_is_told_of_at_most_once_and_leaves_nothing() ->
    ?FORALL(Attempts, ?SUCHTHAT(L, list(attempt()), length(L) =< 20),
            begin
                Holder = begin_registry(),
                try
                    Expected = lists:append(
                                 lists:zipwith(fun(N, Attempt) -> live(integer_to_binary(N), Attempt, Holder) end,
                                               lists:seq(1, length(Attempts)), Attempts)),
                    await(fun is_clean/0),
                    lists:sort(told()) =:= lists:sort(Expected)
                after
                    end_registry(Holder)
                end
            end).

%% Lives an attempt through; what must be told of it.
live(Name, {Direction, Steps, Ending}, Holder) ->
    Register = case Direction of in -> inbound; out -> outbound end,
    Pid = worker(),
    {ok, Id} = distsec_attempts:Register(Pid, facts(Direction, Name)),
    {Owner, Told, Stage} = lists:foldl(fun(Step, State) -> step(Step, Id, Holder, State) end,
                                       {Pid, untold, tls}, Steps),
    finish(Owner, Ending),
    %% A registry that is not there then finds it gone later, and does not know why.
    await(fun() -> distsec_attempts:facts(Id) =:= undefined end),
    case Told of
        told -> [];
        {told, Reason} -> [{Name, Reason}];
        untold when Stage =:= up -> [];
        untold ->
            case distsec_gate:ending(Ending, Stage, facts(Direction, Name)) of
                benign -> [];
                {_, Reason, _} -> [{Name, Reason}]
            end
    end.

step({learn, Key}, Id, _, State) ->
    ok = distsec_attempts:learn(Id, #{Key => <<"x">>}),
    State;
step({stage, Stage}, Id, _, {Owner, Told, _}) ->
    ok = distsec_attempts:stage(Id, Stage),
    {Owner, Told, Stage};
step({refuse, Reason}, Id, _, {Owner, Told, Stage}) ->
    ok = distsec_attempts:refuse(Id, Reason, #{}),
    {Owner, case Told of untold -> {told, Reason}; _ -> Told end, Stage};
step(told, Id, _, {Owner, Told, Stage}) ->
    ok = distsec_attempts:told(Id),
    {Owner, case Told of untold -> told; _ -> Told end, Stage};
step(handover, Id, _, {Owner, Told, Stage}) ->
    Next = worker(),
    ok = distsec_attempts:handover(Id, Next),
    finish(Owner, {recv_challenge_reply_failed, bad_cookie}), % nobody's business any more
    {Next, Told, Stage};
step(restart, _, Holder, State) ->
    exit(whereis(distsec_attempts), kill),
    await(fun() -> whereis(distsec_attempts) =:= undefined end),
    Holder ! {restart, self()},
    receive {restarted, _} -> State end;
step(deadline, Id, _, {Owner, Told, Stage}) ->
    distsec_attempts ! {deadline, Id},
    _ = sys:get_state(distsec_attempts),
    case {Stage, Told} of
        {up, _} -> {Owner, Told, Stage};
        {_, untold} -> {Owner, {told, handshake_timeout}, Stage};
        _ -> {Owner, Told, Stage}
    end.

properties_hold_test_() ->
    {timeout, 120, ?_assert(proper:quickcheck(prop_each_attempt_is_told_of_at_most_once_and_leaves_nothing(),
                                              [quiet, {numtests, 100}]))}.

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
              await(fun is_clean/0)
      end).
