-module(distsec_tools_tests).
-include_lib("eunit/include/eunit.hrl").

-define(ID, <<"spiffe://demo/shell/h/exec.aa">>).
-define(OTHER, <<"spiffe://demo/shell/h/exec.bb">>).
-define(PATTERN, <<"*@h">>).

tools_test_() ->
    {foreach, fun start/0, fun stop/1,
     [fun one_that_was_announced_may_have_any_name_of_its_host/1,
      fun one_that_has_ended_is_forgotten/1,
      fun one_that_has_ended_is_forgotten_whatever_the_process_is_at/1,
      fun one_whose_time_is_up_is_forgotten/1,
      fun one_that_is_given_more_time_is_kept/1,
      fun their_number_is_bounded/1,
      fun after_a_crash_their_time_still_runs/1]}.

start() ->
    ok = distsec_tools:new(),
    {ok, Pid} = distsec_tools:start_link(),
    Pid.

stop(_) ->
    case whereis(distsec_tools) of
        undefined -> ok;
        Pid -> gen_server:stop(Pid)
    end,
    ets:delete(distsec_tools).

without_its_table_nobody_is_admitted_test() ->
    ?assertEqual([], distsec_tools:rules()).

one_that_was_announced_may_have_any_name_of_its_host(_) ->
    ok = distsec_tools:admit(?ID, ?PATTERN, 60),
    Listed = #{name => <<"listed@h">>, identity => <<"spiffe://demo/node/h/listed">>, phase => open},
    Policy = #{cluster => <<"demo">>, generation => 1, issued_at => 0, connect => none,
               require_identity => true, peers => [Listed], denied => [<<"denied@h">>], revoked => [],
               rules => distsec_tools:rules()},
    Claim = #{direction => in, identities => [?ID], names => [], serial => <<"01">>,
              not_after => 10, name => <<"any@h">>, hidden => true, now => 1},
    Decide = fun(Changed) -> distsec_policy:decide(maps:merge(Claim, Changed), Policy) end,
    [?_assertEqual({allow, ?PATTERN}, Decide(#{})),
     ?_assertEqual({allow, ?PATTERN}, Decide(#{name => <<"other@h">>})),
     ?_assertEqual({allow, ?PATTERN}, Decide(#{name => undefined, hidden => undefined})),
     ?_assertMatch({deny, name_not_in_certificate, _}, Decide(#{name => <<"listed@h">>})),
     ?_assertMatch({deny, denied, _}, Decide(#{name => <<"denied@h">>})),
     ?_assertMatch({deny, not_allowed, _}, Decide(#{name => <<"any@other">>})),
     ?_assertMatch({deny, not_hidden, _}, Decide(#{hidden => false})),
     ?_assertMatch({deny, not_inbound, _}, Decide(#{direction => out})),
     ?_assertMatch({deny, too_many_names, _}, Decide(#{live => 8})),
     ?_assertMatch({deny, name_not_in_certificate, _}, Decide(#{identities => [?OTHER]})),
     ?_assertMatch({deny, expired, _}, Decide(#{now => 11}))].

one_that_has_ended_is_forgotten(_) ->
    ok = distsec_tools:admit(?ID, ?PATTERN, 60),
    ok = distsec_tools:admit(?OTHER, ?PATTERN, 60),
    ok = distsec_tools:ended(?ID),
    [?_assertMatch([#{identity := ?OTHER}], distsec_tools:rules())].

one_that_has_ended_is_forgotten_whatever_the_process_is_at(Pid) ->
    ok = distsec_tools:admit(?ID, ?PATTERN, 60),
    sys:suspend(Pid),
    Pid ! {'$gen_call', {self(), make_ref()}, {admit, ?OTHER, ?PATTERN, 60}}, % who asked has given up
    ok = distsec_tools:ended(?ID),
    ok = distsec_tools:ended(?OTHER),
    Meanwhile = distsec_tools:rules(),
    sys:resume(Pid),
    Then = rules(Pid),
    gen_server:stop(Pid),
    [?_assertEqual({[], []}, {Meanwhile, Then}),
     ?_assertEqual(ok, distsec_tools:ended(?ID))].

one_whose_time_is_up_is_forgotten(Pid) ->
    ok = distsec_tools:admit(?ID, ?PATTERN, 60),
    [{?ID, ?PATTERN, Until}] = ets:lookup(distsec_tools, ?ID),
    Pid ! {late, ?ID, Until},
    [?_assertEqual([], rules(Pid))].

one_that_is_given_more_time_is_kept(Pid) ->
    ok = distsec_tools:admit(?ID, ?PATTERN, 60),
    [{?ID, ?PATTERN, Until}] = ets:lookup(distsec_tools, ?ID),
    ok = distsec_tools:admit(?ID, ?PATTERN, 120),
    Pid ! {late, ?ID, Until},
    [?_assertMatch([#{identity := ?ID}], rules(Pid))].

their_number_is_bounded(_) ->
    Each = [integer_to_binary(N) || N <- lists:seq(1, 64)],
    [ok = distsec_tools:admit(Identity, ?PATTERN, 60) || Identity <- Each],
    [?_assertEqual({error, too_many}, distsec_tools:admit(?ID, ?PATTERN, 60)),
     ?_assertEqual(ok, distsec_tools:admit(hd(Each), ?PATTERN, 60))].

after_a_crash_their_time_still_runs(Pid) ->
    ok = distsec_tools:admit(?ID, ?PATTERN, 60),
    [{?ID, ?PATTERN, Until}] = ets:lookup(distsec_tools, ?ID),
    true = ets:insert(distsec_tools, {?ID, ?PATTERN, Until - 60000}),
    gen_server:stop(Pid),
    {ok, Next} = distsec_tools:start_link(),
    [?_assertEqual([], rules(Next))].

%% When it has done what it was sent before.
rules(Pid) ->
    _ = sys:get_state(Pid),
    distsec_tools:rules().
