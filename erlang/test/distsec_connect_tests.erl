-module(distsec_connect_tests).
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-export([prop_only_what_is_listed_and_was_lost_around_an_ejection_is_repaired/0,
         prop_nobody_is_dialled_before_its_time_and_few_at_once/0]).

the_lesser_name_dials_at_once_and_the_greater_a_second_later_test() ->
    ?assertMatch({[<<"b@h">>], _}, distsec_connect:due([<<"b@h">>], <<"a@h">>, #{}, 5000)),
    {[], Known} = distsec_connect:due([<<"a@h">>], <<"b@h">>, #{}, 5000),
    ?assertMatch({[], _}, distsec_connect:due([<<"a@h">>], <<"b@h">>, Known, 5999)),
    ?assertMatch({[<<"a@h">>], _}, distsec_connect:due([<<"a@h">>], <<"b@h">>, Known, 6000)).

each_peer_waits_for_itself_alone_test() ->
    Attempts = #{<<"b@h">> => #{next_ms => 9000, backoff_ms => 500}},
    ?assertMatch({[<<"c@h">>], #{<<"b@h">> := #{next_ms := 9000}}},
                 distsec_connect:due([<<"b@h">>, <<"c@h">>], <<"a@h">>, Attempts, 5000)).

%% However many peers never answer, one that does is dialled; and a handful at a time are begun.
peers_that_do_not_answer_hold_nobody_up_test() ->
    Silent = [{integer_to_binary(N), 1000} || N <- lists:seq(1, 50)],
    ?assertEqual([<<"x">>], distsec_connect:chosen([<<"x">>], Silent, 2000)),
    ?assertEqual([], distsec_connect:chosen([<<"x">>], Silent, 1999)),
    Due = [integer_to_binary(N) || N <- lists:seq(1, 9)],
    ?assertEqual(lists:sublist(Due, 4), distsec_connect:chosen(Due, [], 0)),
    ?assertEqual(lists:sublist(Due, 1), distsec_connect:chosen(Due, [{P, 0} || P <- [a, b, c]], 0)).

%% ---- after an ejection --------------------------------------------------------------------------

policy(Names, Denied, Revoked) ->
    #{peers => [#{name => Name, identity => Name, phase => open} || Name <- Names],
      denied => Denied, revoked => Revoked}.

a_policy_ejects_when_it_takes_a_name_or_a_certificate_back_and_not_otherwise_test() ->
    Before = policy([<<"a@h">>, <<"b@h">>], [], [<<"1">>]),
    Prepared = Before#{peers := [#{name => <<"a@h">>, identity => <<"a@h">>, phase => open},
                                 #{name => <<"b@h">>, identity => <<"b@h">>, phase => prepared}]},
    ?assert(distsec_connect:ejects(Before, Before#{revoked_identities => [<<"b@h">>]})),
    ?assert(distsec_connect:ejects(Before, Before#{revoked_identities => [<<"cli">>]})),
    ?assertNot(distsec_connect:ejects(Before#{revoked_identities => [<<"cli">>]}, Before)),
    ?assert(distsec_connect:ejects(Before, policy([<<"a@h">>, <<"b@h">>], [<<"b@h">>], [<<"1">>]))),
    ?assert(distsec_connect:ejects(Before, policy([<<"a@h">>], [], [<<"1">>]))),
    ?assert(distsec_connect:ejects(Before, policy([<<"a@h">>, <<"b@h">>], [], [<<"2">>, <<"1">>]))),
    ?assert(distsec_connect:ejects(Before, Prepared)),
    ?assertNot(distsec_connect:ejects(Prepared, Before)),
    ?assertNot(distsec_connect:ejects(Before, Before)),
    ?assertNot(distsec_connect:ejects(Before, policy([<<"a@h">>, <<"b@h">>, <<"c@h">>], [], [<<"1">>]))),
    ?assertNot(distsec_connect:ejects(undefined, Before)),
    ?assertNot(distsec_connect:ejects(Before, undefined)).

%% A rule may admit ten thousand names in a day.
only_listed_names_are_remembered_when_they_go_test() ->
    Policy = (policy([<<"b@h">>], [], []))#{connect => none, generation => 1,
                                            rules => [#{pattern => <<"cli-*@h">>, identity => <<>>}]},
    distsec_policy:put_in_force(Policy, <<>>, <<>>),
    State = #{attempts => #{}, lost => #{}},
    ?assertEqual({noreply, State}, distsec_connect:handle_cast({lost, <<"cli-1@h">>}, State)),
    {noreply, #{lost := Lost, attempts := Attempts}} =
        distsec_connect:handle_cast({lost, <<"b@h">>}, State),
    ?assertEqual({[<<"b@h">>], [<<"b@h">>]}, {maps:keys(Lost), maps:keys(Attempts)}).

who_is_denied_or_not_admitted_by_all_yet_dials_nobody_test() ->
    Policy = #{peers := [Own | Others]} = policy([<<"a@h">>, <<"b@h">>], [], []),
    ?assert(distsec_connect:admitted_itself(<<"a@h">>, Policy)),
    ?assert(distsec_connect:admitted_itself(<<"c@h">>, Policy)),
    ?assertNot(distsec_connect:admitted_itself(<<"a@h">>, Policy#{denied := [<<"a@h">>]})),
    ?assertNot(distsec_connect:admitted_itself(<<"a@h">>, Policy#{revoked_identities => [<<"a@h">>]})),
    ?assertNot(distsec_connect:admitted_itself(<<"a@h">>,
                                               Policy#{peers := [Own#{phase := prepared} | Others]})).

in_a_mesh_everybody_is_wanted_whatever_was_lost_test() ->
    ?assertEqual([<<"b@h">>], distsec_connect:wanted(mesh, [<<"b@h">>], #{}, {undefined, 0})).

without_a_mesh_only_a_pair_that_was_linked_and_lost_by_an_ejection_is_repaired_test() ->
    Listed = [<<"b@h">>, <<"c@h">>],
    Wanted = fun(Lost, Ejected, Now) ->
                     distsec_connect:wanted(none, Listed, #{<<"b@h">> => Lost}, {Ejected, Now})
             end,
    ?assertEqual([<<"b@h">>], Wanted(20000, 20000, 20000)), % and not c@h, which was never linked
    ?assertEqual([<<"b@h">>], Wanted(15000, 20000, 20000)), % told of the ejection after the loss
    ?assertEqual([], Wanted(14999, 20000, 20000)),
    ?assertEqual([<<"b@h">>], Wanted(23000, 20000, 23000)),
    ?assertEqual([], Wanted(23001, 20000, 23001)),
    ?assertEqual([], Wanted(20000, undefined, 20000)),      % nobody was ejected: the application's doing
    ?assertEqual([<<"b@h">>], Wanted(20000, 20000, 29999)), % and not for ever
    ?assertEqual([], Wanted(20000, 20000, 30000)),
    ?assertEqual([], distsec_connect:wanted(none, [<<"c@h">>], #{<<"b@h">> => 20000}, {20000, 20000})).

peer() -> oneof([<<N, "@h">> || N <- lists:seq($a, $h)]).
moment() -> range(0, 40000).

prop_only_what_is_listed_and_was_lost_around_an_ejection_is_repaired() ->
    ?FORALL({Listed, Losses, Ejected, Later}, {list(peer()), list({peer(), moment()}), moment(), moment()},
            begin
                Lost = maps:from_list(Losses),
                Now = Ejected + Later,
                Past = maps:filter(fun(_, Since) -> Since =< Now end, Lost),
                Wanted = distsec_connect:wanted(none, Listed, Past, {Ejected, Now}),
                Wanted -- distsec_connect:wanted(mesh, Listed, Past, {Ejected, Now}) =:= []
                    andalso lists:all(fun(Peer) ->
                                              abs(map_get(Peer, Past) - Ejected) =< 5000
                                                  andalso Now - Ejected < 13000
                                      end, Wanted)
            end).

prop_nobody_is_dialled_before_its_time_and_few_at_once() ->
    ?FORALL({Peers, Self, Known, Dialling, Now},
            {list(peer()), peer(), list({peer(), moment()}), list({peer(), moment()}), moment()},
            begin
                Attempts = maps:from_list([{P, #{next_ms => At, backoff_ms => 100}} || {P, At} <- Known]),
                {Due, Next} = distsec_connect:due(Peers, Self, Attempts, Now),
                Chosen = distsec_connect:chosen(Due, Dialling, Now),
                Fresh = [P || {P, Since} <- Dialling, Now - Since < 1000],
                Chosen -- Due =:= [] andalso Due -- Peers =:= []
                    andalso lists:all(fun(P) -> maps:get(next_ms, map_get(P, Next)) =< Now end, Due)
                    andalso length(Chosen) =< max(0, 4 - length(Fresh))
                    andalso maps:with(maps:keys(Attempts), Next) =:= Attempts
            end).

properties_hold_test_() ->
    [{timeout, 120, ?_assert(proper:quickcheck(Property, [quiet, {numtests, 500}]))}
     || Property <- [prop_only_what_is_listed_and_was_lost_around_an_ejection_is_repaired(),
                     prop_nobody_is_dialled_before_its_time_and_few_at_once()]].
