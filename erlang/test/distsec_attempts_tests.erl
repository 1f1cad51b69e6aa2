-module(distsec_attempts_tests).
-include_lib("eunit/include/eunit.hrl").

-import(distsec_test_registry, [await/1, await_clean/0, facts/2, finish/2, half_open/0, inbound/1,
                                is_clean/0, registry_test_/1, told/0, told/1, worker/0]).

%% ---- one event ----------------------------------------------------------------------------------

an_attempt_that_is_refused_again_and_again_is_told_of_once_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, Id} = inbound(<<"x">>),
              ?assertNot(distsec_attempts:is_told(Id)),
              [distsec_attempts:refuse(Id, Reason, #{}) || Reason <- [revoked, closed, malformed]],
              ?assert(distsec_attempts:is_told(Id)),
              finish(Pid, setup_timer_timeout),
              await_clean(),
              ?assert(distsec_attempts:is_told(Id)), % nobody waits for a turn who is gone
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
              await_clean(),
              ?assertEqual([malformed], told(<<"x">>))
      end).

an_end_that_no_gate_has_told_of_is_told_of_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, _} = inbound(<<"x">>),
              finish(Pid, setup_timer_timeout),
              await_clean(),
              ?assertEqual([handshake_timeout], told(<<"x">>))
      end).

a_link_that_came_up_and_ends_is_no_refusal_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, Id} = inbound(<<"x">>),
              distsec_attempts:stage(Id, up),
              finish(Pid, {recv_challenge_reply_failed, bad_cookie}),
              await_clean(),
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

%% The registry deletes the row of an attempt whose process has ended as soon as it is said to be told.
a_refusal_is_told_though_its_row_goes_at_once_test_() ->
    registry_test_(fun(_) -> [goes_at_once() || _ <- lists:seq(1, 2000)] end).

goes_at_once() ->
    Pid = worker(),
    {ok, Id} = distsec_attempts:outbound(Pid, facts(out, <<"x">>)),
    Before = distsec_ring:sequence(refusals),
    {_, Monitor} = spawn_monitor(fun() -> distsec_attempts:refuse(Id, revoked, #{}) end),
    delete_when_told(Id, Monitor),
    ?assertEqual(Before + 1, distsec_ring:sequence(refusals)),
    finish(Pid, normal).

delete_when_told(Id, Monitor) ->
    _ = distsec_attempts:is_told(Id) andalso ets:delete(distsec_attempts, Id),
    receive {'DOWN', Monitor, _, _, Why} -> ?assertEqual(normal, Why)
    after 0 -> delete_when_told(Id, Monitor)
    end.

%% As where a revocation ends an attempt that is just telling by itself that it was refused. Here the ring
%% ends it: that is the last thing which a teller comes to.
what_the_attempt_itself_was_ended_in_telling_is_told_test_() ->
    registry_test_(
      fun(_) ->
              Pid = spawn(fun() ->
                                  Id = receive {refuse, I} -> I end,
                                  try distsec_attempts:refuse(Id, malformed, #{}) catch error:_ -> ok end
                          end),
              {ok, Id} = distsec_attempts:inbound(Pid, facts(in, <<"x">>)),
              Monitor = monitor(process, Pid),
              sys:suspend(distsec_attempts),
              Ring = persistent_term:get({distsec, ring}),
              persistent_term:put({distsec, ring}, broken),
              Pid ! {refuse, Id},
              receive {'DOWN', Monitor, _, _, _} -> ok end,
              persistent_term:put({distsec, ring}, Ring),
              distsec_attempts:refuse(Id, revoked, #{}), % the revocation: another has said it
              ?assertEqual([], told(<<"x">>)),
              sys:resume(distsec_attempts),
              await_clean(),
              ?assertEqual([malformed], told(<<"x">>))
      end).

%% ---- the controller -----------------------------------------------------------------------------

a_controller_goes_with_who_did_its_handshake_test_() ->
    registry_test_(fun(_) -> goes_with_its_handshake(fun({'EXIT', _, disconnect}) -> gone end) end).

a_controller_that_does_not_go_when_it_is_asked_is_killed_test_() ->
    registry_test_(fun(_) -> goes_with_its_handshake(fun(_) -> stays end) end).

%% As tls_sender, which waits on `shutdown`.
goes_with_its_handshake(Asked) ->
    {Pid, Id} = inbound(<<"x">>),
    Controller = spawn(fun() -> process_flag(trap_exit, true), link(Pid), controller(Asked) end),
    await(fun() -> {trap_exit, true} =:= process_info(Controller, trap_exit)
                       andalso {links, [Pid]} =:= process_info(Controller, links) end),
    distsec_attempts:learn(Id, #{controller => Controller}),
    distsec_attempts:stage(Id, up),
    finish(Pid, shutdown),
    await(fun() -> not is_process_alive(Controller) end),
    await_clean().

controller(Asked) ->
    receive
        {'EXIT', _, shutdown} -> controller(Asked);
        Message ->
            case Asked(Message) of
                gone -> ok;
                stays -> controller(Asked)
            end
    end.

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
              await_clean(),
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
              await_clean(),
              ?assertEqual([closed], told(<<"x">>)),
              finish(Pid, normal)
      end).

nobody_takes_over_what_has_ended_test_() ->
    registry_test_(
      fun(_) ->
              {Pid, Id} = inbound(<<"x">>),
              finish(Pid, normal),
              await_clean(),
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
    await_clean(),
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
              await_clean(),
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
              await_clean()
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
              await_clean()
      end).

%% Refused, and then the registry ended that would have ended it.
what_was_refused_before_a_fault_of_the_registry_goes_all_the_same_test_() ->
    distsec_test_registry:registry_test_(
      fun(Holder) ->
              Refused = [begin
                             Pid = worker(),
                             {ok, Id} = distsec_attempts:Direction(Pid, facts(Way, Name)),
                             distsec_attempts:refuse(Id, revoked, #{}),
                             Pid
                         end || {Direction, Way, Name} <- [{inbound, in, <<"in">>},
                                                           {outbound, out, <<"out">>}]],
              Kept = worker(),
              {ok, _} = distsec_attempts:outbound(Kept, facts(out, <<"kept">>)),
              exit(whereis(distsec_attempts), kill),
              await(fun() -> whereis(distsec_attempts) =:= undefined end),
              Holder ! {restart, self()},
              receive {restarted, _} -> ok end,
              await(fun() -> not lists:any(fun is_process_alive/1, Refused) end),
              ?assert(is_process_alive(Kept)),
              finish(Kept, normal),
              await_clean(),
              ?assertEqual([revoked], told(<<"in">>)),
              ?assertEqual([revoked], told(<<"out">>))
      end).
