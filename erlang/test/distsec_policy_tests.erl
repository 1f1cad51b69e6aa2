-module(distsec_policy_tests).
-include_lib("eunit/include/eunit.hrl").

-export([document/2, key/0]).

%% ---- a policy document, as the orchestrator writes it ------------------------------------------

key() ->
    crypto:generate_key(eddsa, ed25519).

document(Map, Private) ->
    Body = iolist_to_binary(io_lib:format("%% for people~n~0p.~n", [{distsec_policy, Map}])),
    Signature = crypto:sign(eddsa, none, Body, [Private, ed25519]),
    <<Body/binary, "{signature, <<\"", (base64:encode(Signature))/binary, "\">>}.\n">>.

policy() ->
    #{version => 1, cluster => <<"demo">>, generation => 7, issued_at => 1000, connect => mesh,
      require_identity => true, denied => [], revoked => [],
      peers => [#{name => <<"a@h">>, identity => <<"spiffe://demo/node/h/a">>, phase => open,
                  address => <<"127.0.0.1">>, port => 9100}],
      rules => [#{pattern => <<"cli-*@h">>, identity => <<"spiffe://demo/cli/*">>}]}.

claim() ->
    #{direction => in, identities => [<<"spiffe://demo/node/h/a">>], serial => <<"01">>,
      not_after => 2000, name => undefined, hidden => undefined, now => 1500}.

takes_a_document_that_the_key_signed_test() ->
    {Public, Private} = key(),
    ?assertMatch({ok, #{generation := 7}},
                 distsec_policy:parse(document(policy(), Private), Public)).

refuses_a_document_of_another_key_test() ->
    {_, Private} = key(),
    {Other, _} = key(),
    ?assertEqual({error, signature}, distsec_policy:parse(document(policy(), Private), Other)).

refuses_a_document_with_any_byte_changed_test_() ->
    {timeout, 60, fun refuses_a_document_with_any_byte_changed/0}.

refuses_a_document_with_any_byte_changed() ->
    {Public, Private} = key(),
    Document = document(policy(), Private),
    lists:foreach(
      fun(At) ->
              <<Before:At/binary, Byte, After/binary>> = Document,
              Changed = <<Before/binary, (Byte bxor 1), After/binary>>,
              ?assertMatch({error, _}, distsec_policy:parse(Changed, Public))
      end, lists:seq(0, byte_size(Document) - 8)).

refuses_what_follows_the_signature_test() ->
    {Public, Private} = key(),
    Document = document(policy(), Private),
    ?assertEqual({error, signature},
                 distsec_policy:parse(<<Document/binary, "{distsec_policy, x}.\n">>, Public)).

makes_no_atom_of_an_unsigned_document_test() ->
    {Public, _} = key(),
    {_, Other} = key(),
    Evil = document((policy())#{list_to_atom("made_here") => 1}, Other),
    Text = binary:replace(Evil, <<"made_here">>, <<"never_made_before_q7">>),
    ?assertEqual({error, signature}, distsec_policy:parse(Text, Public)),
    ?assertError(badarg, binary_to_existing_atom(<<"never_made_before", "_q7">>, utf8)).

refuses_signed_nonsense_test_() ->
    {Public, Private} = key(),
    [?_assertEqual({error, malformed}, distsec_policy:parse(document(Bad, Private), Public))
     || Bad <- [#{}, maps:remove(peers, policy()), (policy())#{version => 3},
                (policy())#{revoked_identities => [a]}, (policy())#{revoked_identities => all},
                (policy())#{connect => sometimes}, (policy())#{denied => [a]},
                (policy())#{peers => [#{name => <<"a@h">>}]},
                (policy())#{rules => [#{pattern => <<"x">>}]},
                with_rule(#{max_live => 0}), with_rule(#{max_live => many}),
                with_rule(#{nodes => [a]}), with_rule(#{nodes => <<"a@h">>})]].

%% Of version 2, so that nodes which do not know of them take no such document.
identities_that_are_revoked_are_neither_let_in_nor_dialled_test_() ->
    {Public, Private} = key(),
    Id = <<"spiffe://demo/node/h/a">>,
    {ok, Policy} = distsec_policy:parse(document(policy(), Private), Public),
    {ok, Without} = distsec_policy:parse(
                      document((policy())#{version => 2, revoked_identities => [Id]}, Private), Public),
    [?_assertEqual({[], [Id]}, {distsec_policy:revoked_identities(Policy),
                                distsec_policy:revoked_identities(Without)}),
     ?_assertMatch({[#{name := <<"a@h">>}], []}, {distsec_policy:open(Policy), distsec_policy:open(Without)}),
     ?_assertMatch({[_], []}, {distsec_policy:peers(Policy), distsec_policy:peers(Without)}),
     ?_assertEqual({deny, revoked, undefined}, distsec_policy:decide(claim(), Without))].

with_rule(More) ->
    #{rules := [Rule]} = Policy = policy(),
    Policy#{rules => [maps:merge(Rule, More)]}.

%% As in documents of before there were these.
a_rule_that_says_no_more_is_for_eight_names_and_all_nodes_test_() ->
    {Public, Private} = key(),
    {ok, Policy} = distsec_policy:parse(document(policy(), Private), Public),
    Tool = (claim())#{identities => [<<"spiffe://demo/cli/x">>], name => <<"cli-1@h">>,
                      hidden => true, node => <<"whoever@h">>},
    [?_assertEqual({allow, <<"cli-*@h">>}, distsec_policy:decide(Tool#{live => 7}, Policy)),
     ?_assertEqual({deny, too_many_names, <<"cli-*@h">>},
                   distsec_policy:decide(Tool#{live => 8}, Policy))].

refuses_everybody_without_a_policy_test_() ->
    [?_assertEqual({deny, no_policy, undefined}, distsec_policy:decide(claim(), Policy))
     || Policy <- [undefined, (policy())#{peers => [], rules => []}]].

allows_the_listed_name_with_its_certificate_test() ->
    ?assertEqual({allow, <<"a@h">>},
                 distsec_policy:decide((claim())#{name => <<"a@h">>}, policy())).

refuses_another_name_with_the_certificate_test() ->
    ?assertEqual({deny, name_not_in_certificate, undefined},
                 distsec_policy:decide((claim())#{name => <<"b@h">>}, policy())).

a_clock_set_back_revives_nothing_test() ->
    Policy = (policy())#{issued_at => 3000},
    ?assertEqual({deny, expired, undefined}, distsec_policy:decide(claim(), Policy)).

globs_stay_before_the_at_test_() ->
    [?_assertEqual(Expected, distsec_admission:glob_matches(Pattern, Name))
     || {Expected, Pattern, Name} <-
            [{true, <<"cli-*@h">>, <<"cli-1@h">>}, {true, <<"cli-*@h">>, <<"cli-@h">>},
             {false, <<"cli-*@h">>, <<"cli-1@g">>}, {false, <<"cli-*@h">>, <<"cli-1@h@h">>},
             {false, <<"cli-*@h">>, <<"xcli-1@h">>}, {true, <<"*a*b@h">>, <<"xaxb@h">>},
             {false, <<"*a*b@h">>, <<"xbxa@h">>}, {false, <<"a@h">>, <<"@h">>},
             {false, <<"aa*a@h">>, <<"aa@h">>}]].

%% What a stranger sends as a name costs one pass, however it is made.
a_hostile_name_is_matched_in_one_pass_test() ->
    Name = <<(binary:copy(<<"a">>, 100000))/binary, "@h">>,
    Pattern = <<"*a*a*a*a*a*a*a*b@h">>,
    ?assertNot(distsec_admission:glob_matches(Pattern, Name)).
