-module(distsec_shells_tests).
-include_lib("eunit/include/eunit.hrl").

-define(NAME, <<"distsec-shell-1@h">>).
-define(OTHER, <<"distsec-shell-2@h">>).
-define(ID, <<"spiffe://demo/shell/h/distsec-shell-1.aa">>).

shells_test_() ->
    {foreach, fun start/0, fun stop/1,
     [fun one_that_was_announced_is_a_rule_for_its_exact_name/1,
      fun one_that_does_not_attach_in_time_is_forgotten/1,
      fun one_whose_link_goes_down_is_forgotten/1,
      fun one_that_has_ended_is_forgotten/1,
      fun a_late_end_of_a_link_does_not_forget_the_next_of_that_name/1,
      fun one_that_has_ended_is_forgotten_whatever_the_process_is_at/1,
      fun a_late_deadline_does_not_forget_the_next_of_that_name/1,
      fun a_name_in_use_is_not_given_again/1,
      fun their_number_is_bounded/1,
      fun after_a_crash_those_that_are_not_up_are_forgotten/1]}.

start() ->
    ok = distsec_shells:new(),
    {ok, Pid} = distsec_shells:start_link(),
    Pid.

stop(_) ->
    case whereis(distsec_shells) of
        undefined -> ok;
        Pid -> gen_server:stop(Pid)
    end,
    ets:delete(distsec_shells).

without_its_table_nobody_is_admitted_test() ->
    ?assertEqual([], distsec_shells:rules()).

one_that_was_announced_is_a_rule_for_its_exact_name(_) ->
    ok = distsec_shells:admit(?NAME, ?ID, 60),
    Policy = #{cluster => <<"demo">>, generation => 1, issued_at => 0, connect => none,
               require_identity => true, peers => [], denied => [], revoked => [],
               rules => distsec_shells:rules()},
    Claim = #{direction => in, identities => [?ID], names => [], serial => <<"01">>,
              not_after => 10, name => ?NAME, hidden => true, now => 1},
    Decide = fun(Changed) -> distsec_policy:decide(maps:merge(Claim, Changed), Policy) end,
    [?_assertEqual({allow, ?NAME}, Decide(#{})),
     ?_assertEqual({allow, ?NAME}, Decide(#{name => undefined, hidden => undefined})),
     ?_assertMatch({deny, not_hidden, _}, Decide(#{hidden => false})),
     ?_assertMatch({deny, not_inbound, _}, Decide(#{direction => out})),
     ?_assertMatch({deny, not_allowed, _}, Decide(#{name => ?OTHER})),
     ?_assertMatch({deny, name_not_in_certificate, _},
                   Decide(#{identities => [<<"spiffe://demo/shell/h/distsec-shell-1.bb">>]})),
     ?_assertMatch({deny, expired, _}, Decide(#{now => 11}))].

one_that_does_not_attach_in_time_is_forgotten(Pid) ->
    ok = distsec_shells:admit(?NAME, ?ID, 60),
    [{_, _, Deadline, _}] = ets:lookup(distsec_shells, ?NAME),
    Pid ! {late, ?NAME, Deadline},
    [?_assertEqual([], rules(Pid))].

one_whose_link_goes_down_is_forgotten(Pid) ->
    ok = distsec_shells:admit(?NAME, ?ID, 60),
    Pid ! {nodeup, 'distsec-shell-1@h', []},
    Pid ! {nodedown, 'distsec-shell-1@h', []},
    [?_assertEqual([], rules(Pid))].

a_late_end_of_a_link_does_not_forget_the_next_of_that_name(Pid) ->
    ok = distsec_shells:admit(?NAME, ?ID, 60),
    Pid ! {nodeup, 'distsec-shell-1@h', []},
    ok = distsec_shells:ended(?NAME),
    ok = distsec_shells:admit(?NAME, <<"another">>, 60),
    Pid ! {nodedown, 'distsec-shell-1@h', []},
    Left = rules(Pid),
    %% Its own link is another matter.
    Pid ! {nodeup, 'distsec-shell-1@h', []},
    Pid ! {nodedown, 'distsec-shell-1@h', []},
    AtLast = rules(Pid),
    [?_assertMatch([#{identity := <<"another">>}], Left),
     ?_assertEqual([], AtLast)].

one_that_has_ended_is_forgotten(Pid) ->
    ok = distsec_shells:admit(?NAME, ?ID, 60),
    ok = distsec_shells:ended(?NAME),
    ok = distsec_shells:ended(?NAME),
    [?_assertEqual([], rules(Pid))].

one_that_has_ended_is_forgotten_whatever_the_process_is_at(Pid) ->
    ok = distsec_shells:admit(?NAME, ?ID, 60),
    sys:suspend(Pid),
    Pid ! {'$gen_call', {self(), make_ref()}, {admit, ?OTHER, ?ID, 60}}, % who asked has given up
    ok = distsec_shells:ended(?NAME),
    ok = distsec_shells:ended(?OTHER),
    Meanwhile = distsec_shells:rules(),
    sys:resume(Pid),
    Then = rules(Pid),
    gen_server:stop(Pid),
    [?_assertEqual({[], []}, {Meanwhile, Then}),
     ?_assertEqual(ok, distsec_shells:ended(?NAME))].

a_late_deadline_does_not_forget_the_next_of_that_name(Pid) ->
    ok = distsec_shells:admit(?NAME, ?ID, 60),
    [{_, _, First, _}] = ets:lookup(distsec_shells, ?NAME),
    ok = distsec_shells:ended(?NAME),
    ok = distsec_shells:admit(?NAME, <<"another">>, 60),
    Pid ! {late, ?NAME, First},
    [?_assertMatch([#{identity := <<"another">>}], rules(Pid))].

a_name_in_use_is_not_given_again(_) ->
    ok = distsec_shells:admit(?NAME, ?ID, 60),
    [?_assertEqual({error, in_use}, distsec_shells:admit(?NAME, <<"another">>, 60)),
     ?_assertMatch([#{identity := ?ID}], distsec_shells:rules())].

their_number_is_bounded(_) ->
    Answers = [distsec_shells:admit(integer_to_binary(N), ?ID, 60) || N <- lists:seq(1, 65)],
    [?_assertEqual([ok, {error, too_many}], lists:usort(Answers)),
     ?_assertEqual(64, length(distsec_shells:rules()))].

after_a_crash_those_that_are_not_up_are_forgotten(Pid) ->
    ok = distsec_shells:admit(?NAME, ?ID, 60),
    unlink(Pid),
    Monitor = monitor(process, Pid),
    exit(Pid, kill),
    receive {'DOWN', Monitor, _, _, _} -> ok end,
    {ok, Next} = distsec_shells:start_link(),
    [?_assertEqual([], rules(Next))].

%% Once the process has dealt with what was sent to it.
rules(Pid) ->
    ok = gen_server:call(Pid, anything),
    distsec_shells:rules().
