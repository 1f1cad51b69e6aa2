-module(distsec_renewal_tests).

-include_lib("eunit/include/eunit.hrl").

-define(OWN, #{serial => <<"01">>, loaded_ms => 0}).

proof(Direction, Theirs, Ours) ->
    #{direction => Direction, not_after => Theirs, own_serial => <<"01">>, own_not_after => Ours, at_ms => 0}.

due(Proof, Now) ->
    element(1, distsec_renewal:due(Proof, ?OWN, {Now, Now * 1000}, 0.5)).

%% Proven at 0 s, with 60 s to go: from 40 s on it is time for who dialled, from 50 s for who was dialled.
a_proof_begins_when_a_third_of_its_time_is_left_test() ->
    Out = proof(out, 60, 60),
    In = proof(in, 60, 60),
    ?assertEqual([false, true, true], [due(Out, Now) || Now <- [39, 40, 70]]),
    ?assertEqual([false, false, true], [due(In, Now) || Now <- [39, 49, 50]]).

of_two_certificates_the_one_that_ends_first_counts_test() ->
    ?assert(due(proof(out, 3600, 60), 45)),
    ?assert(due(proof(out, 60, 3600), 45)),
    ?assertNot(due(proof(out, 3600, 3600), 45)).

of_a_year_it_is_the_last_day_test() ->
    Year = 31536000,
    ?assertNot(due(proof(out, Year, Year), Year - 86401)),
    ?assert(due(proof(out, Year, Year), Year - 86400)).

another_certificate_of_ones_own_is_shown_soon_and_not_by_all_at_once_test() ->
    Own = #{serial => <<"02">>, loaded_ms => 10000},
    Due = fun(Direction, NowMs, Spread) ->
                  element(1, distsec_renewal:due(proof(Direction, 86400, 86400), Own, {NowMs div 1000, NowMs}, Spread))
          end,
    ?assert(Due(out, 10000, 0.0)),
    ?assertNot(Due(out, 12000, 0.5)),
    ?assert(Due(out, 12500, 0.5)),
    ?assertNot(Due(in, 14999, 0.0)),
    ?assert(Due(in, 15000, 0.0)).

what_brought_nothing_is_tried_again_within_bounds_test() ->
    Again = fun(Life) -> element(2, distsec_renewal:due(proof(out, Life, Life), ?OWN, {0, 0}, 0.0)) end,
    ?assertEqual(2000, Again(1)),
    ?assertEqual(2500, Again(60)),
    ?assertEqual(600000, Again(31536000)).
