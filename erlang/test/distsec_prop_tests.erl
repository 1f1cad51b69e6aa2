%% Properties. Found and run by scripts/erlang-test (PropEr); the EUnit wrapper runs them too.
-module(distsec_prop_tests).
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").
-include_lib("public_key/include/public_key.hrl").

-export([prop_glob_agrees_with_a_regular_expression/0, prop_a_ring_shows_the_newest_in_order/0,
         prop_lanes_do_not_touch_each_other/0, prop_no_document_without_the_key_is_taken/0,
         prop_no_frame_makes_an_atom_or_a_crash/0,
         prop_subjects_are_equal_where_their_structure_is/0,
         prop_no_certificate_is_too_strange_to_be_read/0,
         prop_names_beside_a_spiffe_id_of_this_cluster_change_nothing/0,
         prop_a_certificate_is_at_most_one_listed_identity/0]).

%% Of letters few enough that matches happen.
name() -> list(oneof([$a, $b, $-])).
glob() -> list(oneof([$a, $b, $-, $*])).

prop_glob_agrees_with_a_regular_expression() ->
    ?FORALL({Glob, Head}, {glob(), name()},
            begin
                Pattern = list_to_binary(Glob ++ "@h"),
                Regex = ["\\A", [case C of $* -> ".*"; _ -> C end || C <- Glob], "\\z"],
                Expected = Head =/= [] andalso re:run(Head, Regex, [{capture, none}]) =:= match,
                Expected =:= distsec_admission:glob_matches(Pattern, list_to_binary(Head ++ "@h"))
            end).

prop_a_ring_shows_the_newest_in_order() ->
    ?FORALL({Puts, Acked}, {range(0, 20000), range(0, 20000)},
            begin
                ok = distsec_ring:new(),
                [distsec_ring:put(refusals, #{}) || _ <- lists:seq(1, Puts)],
                ok = distsec_ring:acknowledge(refusals, Acked),
                {Events, Next} = distsec_ring:read(refusals, 0, 30000, pass),
                First = max(min(Acked, Puts), Puts - distsec_ring:capacity(refusals)) + 1,
                [N || {N, _} <- Events] =:= lists:seq(First, Puts) andalso Next =:= Puts
                    andalso distsec_ring:dropped(refusals)
                        =:= max(0, Puts - distsec_ring:capacity(refusals))
            end).

prop_lanes_do_not_touch_each_other() ->
    ?FORALL(Lanes, list(oneof([critical, refusals])),
            begin
                ok = distsec_ring:new(),
                [distsec_ring:put(Lane, #{lane => Lane}) || Lane <- Lanes],
                lists:all(fun(Lane) ->
                                  {Events, _} = distsec_ring:read(Lane, 0, 100000, 0),
                                  length(Events) =:= length([L || L <- Lanes, L =:= Lane])
                                      andalso lists:all(fun({_, #{lane := L}}) -> L =:= Lane end,
                                                        Events)
                          end, [critical, refusals])
            end).

prop_no_document_without_the_key_is_taken() ->
    {Public, _} = distsec_policy_tests:key(),
    ?FORALL(Bytes, oneof([binary(), ?LET(B, binary(), <<"{distsec_policy, #{}}.\n{signature, <<\"",
                                                       (base64:encode(B))/binary, "\">>}.\n">>)]),
            element(1, distsec_policy:parse(Bytes, Public)) =:= error).

prop_no_frame_makes_an_atom_or_a_crash() ->
    error = distsec_port:decode(<<131>>), % loads what there is to load
    ?FORALL(Bytes, oneof([binary(), ?LET(B, binary(), <<131, B/binary>>)]),
            begin
                Before = erlang:system_info(atom_count),
                case distsec_port:decode(Bytes) of
                    {ok, _} -> ok;
                    error -> ok
                end,
                erlang:system_info(atom_count) =:= Before
            end).

%% ---- identities ---------------------------------------------------------------------------------

oid() -> oneof([{2, 5, 4, 3}, {2, 5, 4, 10}, {1, 2, 3}]).
letters() -> non_empty(list(oneof([$a, $b, $,, $+, $:, $6]))).
attribute() -> {oid(), letters()}.
structure() -> non_empty(list(?LET(Pairs, non_empty(list(attribute())), lists:ukeysort(1, Pairs)))).

%% The same text in one of the string types that a certificate may use for it.
typed(Text) ->
    oneof([{utf8String, list_to_binary(Text)}, {printableString, Text}, {bmpString, Text}, Text,
           list_to_binary([12, length(Text), Text]), list_to_binary([19, length(Text), Text])]).

rdns(Structure) ->
    [?LET(Shuffled, shuffled(Rdn), [{Oid, typed(Text)} || {Oid, Text} <- Shuffled]) || Rdn <- Structure].

shuffled(List) ->
    ?LET(Keys, vector(length(List), integer()),
         [Item || {_, Item} <- lists:sort(lists:zip(Keys, List))]).

prop_subjects_are_equal_where_their_structure_is() ->
    ?FORALL({A, B}, ?LET(S, structure(), {S, oneof([S, structure()])}),
            ?FORALL({Left, Right}, {rdns(A), rdns(B)},
                    begin
                        One = distsec_identity_tests:names_of([], Left),
                        Other = distsec_identity_tests:names_of([], Right),
                        case {One, Other} of
                            {[_], [_]} -> (One =:= Other) =:= (A =:= B);
                            _ -> length(lists:append(A)) > 16 orelse length(lists:append(B)) > 16
                        end
                    end)).

prop_no_certificate_is_too_strange_to_be_read() ->
    ?FORALL({Names, Subject}, {term(), oneof([term(), {rdnSequence, term()}, list(list({oid(), term()}))])},
            begin
                Extension = #'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = Names},
                Hosts = #'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = [{dNSName, Names}]},
                Read = distsec_identity_tests:names_of([Extension, Hosts], Subject),
                is_list(Read) andalso lists:all(fun(N) -> is_binary(N) andalso byte_size(N) =< 2048 end, Read)
            end).

uri() -> oneof([<<"spiffe://d/a">>, <<"spiffe://d/b">>, <<"spiffe://e/a">>, <<"https://x/">>]).
name_identity() -> oneof([<<"dns:a">>, <<"dns:b">>, <<"dn:2.5.4.3:61">>]).

policy() ->
    ?LET({Identities, Taken}, {list(oneof([uri(), name_identity()])), list(oneof([uri(), name_identity()]))},
         #{cluster => <<"d">>, generation => 1, issued_at => 0, connect => mesh, require_identity => true,
           denied => [], revoked => [],
           peers => [#{name => <<($a + N), "@h">>, identity => I, phase => open, address => undefined,
                       port => undefined}
                     || {N, I} <- lists:zip(lists:seq(1, length(Identities)), Identities)],
           rules => [#{pattern => <<"cli-*@h">>, identity => I} || I <- Taken]}).

claim() ->
    ?LET({Uris, Names, Name, Hidden},
         {oneof([[], [uri()]]), list(name_identity()),
          oneof([undefined, <<"cli-1@h">>, <<"b@h">>, <<"c@h">>]), oneof([true, undefined])},
         #{direction => in, identities => Uris, names => Names, serial => <<"01">>, not_after => 10,
           name => Name, hidden => Hidden, now => 1}).

prop_names_beside_a_spiffe_id_of_this_cluster_change_nothing() ->
    ?FORALL({Policy, Claim, Uri}, {policy(), claim(), oneof([<<"spiffe://d/a">>, <<"spiffe://d/b">>])},
            begin
                Own = Claim#{identities := [Uri]},
                distsec_admission:decide(Own, Policy)
                    =:= distsec_admission:decide(Own#{names := []}, Policy)
            end).

prop_a_certificate_is_at_most_one_listed_identity() ->
    ?FORALL({#{peers := Peers} = Policy, Claim}, {policy(), claim()},
            begin
                Admitted = [I || #{name := Name, identity := I} <- Peers,
                                 {allow, _} <- [distsec_admission:decide(Claim#{name := Name}, Policy)]],
                length(lists:usort(Admitted)) =< 1
            end).

properties_hold_test_() ->
    %% Each its own: one that is set for a list leaves every test of it with EUnit's 5 s.
    [{timeout, 120, ?_assert(proper:quickcheck(Property, [quiet, {numtests, 100}]))}
     || Property <- [prop_glob_agrees_with_a_regular_expression(),
                     prop_a_ring_shows_the_newest_in_order(),
                     prop_lanes_do_not_touch_each_other(),
                     prop_no_document_without_the_key_is_taken(),
                     prop_no_frame_makes_an_atom_or_a_crash(),
                     prop_subjects_are_equal_where_their_structure_is(),
                     prop_no_certificate_is_too_strange_to_be_read(),
                     prop_names_beside_a_spiffe_id_of_this_cluster_change_nothing(),
                     prop_a_certificate_is_at_most_one_listed_identity()]].
