%% The gates for which no peer can wait, since nothing is sent between them: dist_util calls them one
%% after the other when the cookies are exchanged. What a peer can wait for, tests/system/test_carrier_gates.py
%% has, with nodes.
-module(distsec_handshake_tests).
-include_lib("eunit/include/eunit.hrl").
-include_lib("kernel/include/dist_util.hrl").

-import(distsec_test_registry, [await/1, begin_registry/0, end_registry/1]).

-define(PATIENCE_MS, 30000).
-define(FLAGS, 16#0000000407070F94).
-define(NODE, 'b@h').

%% ---- what belongs to a test ---------------------------------------------------------------------

begin_world() ->
    Tls = distsec_tls_tests:begin_tls(),
    {Tls, begin_registry()}.

end_world({Tls, Holder}) ->
    ok = end_registry(Holder),
    _ = persistent_term:erase({distsec, policy}),
    distsec_tls_tests:end_tls(Tls).

in_a_world(Tests) ->
    {setup, fun begin_world/0, fun end_world/1,
     [{Title, {timeout, 60, Test}} || {Title, Test} <- Tests]}.

policy() ->
    #{version => 1, cluster => <<"demo">>, generation => 1, issued_at => 0, connect => none,
      require_identity => true, denied => [], revoked => [], rules => [],
      peers => [#{name => <<"b@h">>, identity => distsec_tls_tests:identity(), phase => open,
                  address => <<"127.0.0.1">>, port => 1},
                #{name => <<"c@h">>, identity => <<"spiffe://demo/node/h/c">>, phase => open,
                  address => undefined, port => undefined}]}.

put_in_force(Policy) ->
    ok = distsec_policy:put_in_force(Policy, <<>>).

%% What may have changed since the gate before, and what the next one must say of it.
changes(Serial) ->
    #{peers := [Peer, Other]} = Policy = policy(),
    Mine = distsec_tls_tests:identity(),
    [{revoked, Policy#{revoked => [Serial]}},
     {denied, Policy#{denied => [<<"b@h">>]}},
     {not_allowed, Policy#{peers := [Other]}},
     {not_open, Policy#{peers := [Peer#{phase := prepared}, Other]}},
     {name_not_in_certificate, Policy#{peers := [Peer#{identity := <<"spiffe://demo/x">>},
                                                 Other#{identity := Mine}]}},
     {no_policy, Policy#{peers => [], rules => []}},
     {no_policy, undefined},
     {expired, Policy#{issued_at => 1 bsl 40}}]. % time is at least that of the policy

change(N, Serial) ->
    case lists:nth(N, changes(Serial)) of
        {_, undefined} -> persistent_term:erase({distsec, policy});
        {_, Policy} -> put_in_force(Policy)
    end.

%% An attempt that has passed every gate up to the cookies: with a real session, and a controller that
%% only keeps what it is told. Test runs in the process that does the handshake.
attempt(Direction, Test) ->
    put_in_force(policy()),
    Collector = self(),
    Controller = spawn_link(fun() -> keep(Collector) end),
    {_, Monitor} = spawn_monitor(fun() -> handshake(Direction, Controller, Collector, Test) end),
    Id = receive
             {Controller, id, I} -> I;
             {'DOWN', Monitor, _, _, Early} -> error(Early)
         end,
    Ended = receive {'DOWN', Monitor, _, _, Why} -> Why after ?PATIENCE_MS -> error(does_not_end) end,
    Stage = [S || {Of, _, S, _} <- distsec_attempts:all(), Of =:= Id],
    ok = sys:resume(distsec_attempts, ?PATIENCE_MS),
    await(fun() -> distsec_attempts:facts(Id) =:= undefined end),
    unlink(Controller),
    exit(Controller, kill),
    #{ended => Ended, delivered => delivered(Controller), told => told(), stage => Stage}.

handshake(Direction, Controller, Collector, Test) ->
    {Id, Ssl, Peer} = session(Direction),
    true = distsec_handshake:admitted(Id, Ssl),
    Data = distsec_handshake:hs_data(Id, Ssl, Direction, Controller),
    ok = ssl:send(Peer, frame(Direction)),
    {ok, _} = (Data#hs_data.f_recv)(Controller, 0, ?PATIENCE_MS),
    [{named, Serial}] = [{Stage, S} || {I, _, Stage, #{serial := S}} <- distsec_attempts:all(), I =:= Id],
    %% Else the registry kills, a second and a half after a refusal, what is still closing its session on a
    %% busy machine.
    ok = sys:suspend(distsec_attempts, ?PATIENCE_MS),
    Collector ! {Controller, id, Id},
    Test(Data, Serial),
    exit(through).

session(in) ->
    {ok, Id} = distsec_attempts:inbound(self(), #{direction => in, address => {{127, 0, 0, 1}, 1}}),
    {{ok, Ssl}, {ok, Peer}} = distsec_tls_tests:pair(accept(#{attempt => Id}), connect(#{selfcheck => self()})),
    {Id, Ssl, Peer};
session(out) ->
    {ok, Id} = distsec_attempts:outbound(self(), #{direction => out, address => {{127, 0, 0, 1}, 1},
                                                   name => <<"b@h">>, claimed => <<"b@h">>}),
    {{ok, Peer}, {ok, Ssl}} = distsec_tls_tests:pair(accept(#{selfcheck => self()}), connect(#{attempt => Id})),
    {Id, Ssl, Peer}.

accept(State) ->
    fun(Socket) -> distsec_tls:accept(Socket, State, ?PATIENCE_MS) end.

connect(State) ->
    fun(Socket) -> distsec_tls:connect(Socket, State, ?PATIENCE_MS) end.

%% tls_sender:dist_handshake_complete/3 is a call.
keep(Collector) ->
    receive
        {'$gen_call', From, Request} ->
            Collector ! {self(), delivered, Request},
            gen_statem:reply(From, ok),
            keep(Collector);
        _ ->
            keep(Collector)
    end.

delivered(Controller) ->
    receive {Controller, delivered, Request} -> [Request | delivered(Controller)] after 0 -> [] end.

frame(in) -> <<$N, ?FLAGS:64, 1:32, 3:16, "b@h">>;
frame(out) -> <<$N, ?FLAGS:64, 2:32, 1:32, 3:16, "b@h">>.

%% The refusals since it was asked last.
told() ->
    Last = distsec_ring:sequence(refusals),
    {Events, _} = distsec_ring:read(refusals, 0, 100000, pass),
    ok = distsec_ring:acknowledge(refusals, Last),
    [{Direction, Reason, Claimed}
     || {_, #{direction := Direction, reason := Reason, claimed := Claimed}} <- Events].

%% ---- the gates ----------------------------------------------------------------------------------

whoever_is_still_admitted_passes_every_gate_test_() ->
    Test = fun(#hs_data{socket = Socket, f_setopts_post_nodeup = After} = Data, _) ->
                   ok = pass(before_nodeup, Data),
                   ok = After(Socket),
                   ok = pass(before_delivery, Data),
                   [{Id, _, up, _}] = distsec_attempts:all(),
                   distsec_attempts:told(Id)
           end,
    in_a_world(
      [{atom_to_list(Direction),
        fun() ->
                #{ended := through, delivered := Delivered, told := []} = attempt(Direction, Test),
                ?assertMatch([{dist_handshake_complete, ?NODE, handle}], Delivered)
        end} || Direction <- [in, out]]).

before_nodeup_the_policy_is_asked_again_test_() ->
    refuses(fun(N) ->
                    fun(Data, Serial) ->
                            change(N, Serial),
                            pass(before_nodeup, Data)
                    end
            end).

%% Here the link is known already (erlang:setnode/3), and nothing of it delivered.
before_the_first_byte_is_delivered_the_policy_is_asked_again_test_() ->
    refuses(fun(N) ->
                    fun(Data, Serial) ->
                            ok = pass(before_nodeup, Data),
                            change(N, Serial),
                            pass(before_delivery, Data)
                    end
            end).

%% Nothing is delivered, the process ends with its session, and it is told of once.
refuses(Test) ->
    in_a_world(
      [{lists:flatten(io_lib:format("~s ~s", [Direction, Reason])),
        fun() ->
                #{ended := Ended, delivered := Delivered, told := Told, stage := Stage}
                    = attempt(Direction, Test(N)),
                ?assertEqual({shutdown, refused}, Ended),
                ?assertEqual([], Delivered),
                ?assertNot(lists:member(up, Stage)),
                ?assertEqual([{Direction, Reason, <<"b@h">>}], Told)
        end} || Direction <- [in, out],
                {N, {Reason, _}} <- lists:enumerate(changes(<<>>))]).

%% Ended by a revocation that ran in between: there is no attempt any more, and so no gate to pass.
an_attempt_that_is_not_known_any_more_passes_no_gate_test_() ->
    in_a_world(
      [{atom_to_list(Gate),
        fun() ->
                #{ended := {shutdown, refused}, delivered := []} =
                    attempt(in, fun(Data, _) ->
                                        [{Id, _, _, _}] = distsec_attempts:all(),
                                        distsec_attempts:told(Id),
                                        true = ets:delete(distsec_attempts, Id),
                                        pass(Gate, Data)
                                end)
        end} || Gate <- [before_nodeup, before_delivery]]).

pass(before_nodeup, #hs_data{f_setopts_pre_nodeup = Gate, socket = Socket}) -> Gate(Socket);
pass(before_delivery, #hs_data{f_handshake_complete = Gate, socket = Socket}) -> Gate(Socket, ?NODE, handle).

%% ---- what net_kernel arbitrates -----------------------------------------------------------------

%% dist_util:mark_pending/1 of a name that is pending already: by our own attempt, if it is the peer.
an_attempt_is_no_refusal_beside_one_of_ours_and_is_one_beside_its_peer_s_test_() ->
    Superfluous = fun(#hs_data{f_send = Send, socket = Socket}, _) ->
                          ok = Send(Socket, "snok"),
                          exit(shutdown)
                  end,
    in_a_world(
      [{atom_to_list(Direction),
        fun() ->
                {Pid, Monitor} = spawn_monitor(fun() -> receive stop -> ok end end),
                Register = case Direction of in -> inbound; out -> outbound end,
                {ok, Other} = distsec_attempts:Register(Pid, #{direction => Direction, name => <<"b@h">>}),
                #{ended := shutdown, told := Told} = attempt(in, Superfluous),
                ?assertEqual(Expected, Told),
                distsec_attempts:told(Other),
                Pid ! stop,
                receive {'DOWN', Monitor, _, _, _} -> ok end,
                %% Else the next one crosses it.
                await(fun() -> distsec_attempts:facts(Other) =:= undefined end)
        end} || {Direction, Expected} <- [{out, []}, {in, [{in, closed, <<"b@h">>}]}]]).
