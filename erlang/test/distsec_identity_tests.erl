-module(distsec_identity_tests).
-include_lib("eunit/include/eunit.hrl").
-include_lib("public_key/include/public_key.hrl").

-export([names_of/2, rdn/1]).

certificate(Extensions) ->
    certificate(Extensions, [[{?'id-at-organizationName', {utf8String, <<"demo">>}}],
                             [{?'id-at-commonName', {utf8String, <<"CA">>}}]]).

certificate(Extensions, Subject) ->
    #'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{
        serialNumber = 16#0A1B, extensions = Extensions,
        issuer = {rdnSequence, [rdn([{?'id-at-organizationName', {utf8String, <<"demo">>}}]),
                                rdn([{?'id-at-commonName', {utf8String, <<"CA">>}}])]},
        subject = case Subject of
                      Rdns when is_list(Rdns) -> {rdnSequence, lists:map(fun rdn/1, Rdns)};
                      Other -> Other
                  end,
        validity = #'Validity'{notBefore = {utcTime, "700101000000Z"},
                               notAfter = {generalTime, "20380119031408Z"}}}}.

rdn(Pairs) when is_list(Pairs) ->
    [#'AttributeTypeAndValue'{type = Type, value = Value} || {Type, Value} <- Pairs];
rdn(Other) ->
    Other.

names_of(Extensions, Subject) ->
    maps:get(names, distsec_identity:of_certificate(certificate(Extensions, Subject))).

subject(Rdns) ->
    names_of([], Rdns).

names(Uris) ->
    #'Extension'{extnID = ?'id-ce-subjectAltName',
                 extnValue = [{dNSName, "h"} | [{uniformResourceIdentifier, U} || U <- Uris]]}.

hosts(Hosts) ->
    #'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = [{dNSName, H} || H <- Hosts]}.

usages(Key, Extended) ->
    [#'Extension'{extnID = ?'id-ce-keyUsage', extnValue = Key},
     #'Extension'{extnID = ?'id-ce-extKeyUsage', extnValue = Extended}].

%% ---- what a claim needs -------------------------------------------------------------------------

reads_what_a_claim_needs_test() ->
    ?assertEqual(#{identities => [<<"spiffe://d/x">>], serial => <<"0a1b">>,
                   names => [<<"dns:h">>, <<"dn:2.5.4.10:64656d6f,2.5.4.3:4341">>], usages => [],
                   subject => <<"CN=CA,O=demo">>, issuer => <<"CN=CA,O=demo">>,
                   not_before => 0, not_after => 2147483648},
                 distsec_identity:of_certificate(certificate([names(["spiffe://d/x"])]))).

every_uri_counts_and_none_is_none_test() ->
    Of = fun(E) -> maps:get(identities, distsec_identity:of_certificate(certificate(E))) end,
    ?assertEqual([], Of([])),
    ?assertEqual([], Of(asn1_NOVALUE)),
    ?assertEqual(2, length(Of([names(["a", "b"])]))),
    ?assertEqual(2, length(Of([names(["a"]), names(["b"])]))),
    ?assert(length(Of([names([integer_to_list(N) || N <- lists:seq(1, 1000)])])) =< 8).

texts_are_bounded_test() ->
    [Long] = maps:get(identities, distsec_identity:of_certificate(
                                    certificate([names([lists:duplicate(100000, $a)])]))),
    ?assertEqual(255, byte_size(Long)),
    ?assert(byte_size(distsec_identity:serial(1 bsl 100000 - 1)) =< 128).

%% Cut, it would be equal to another identity, or begin as one that a rule takes.
a_uri_is_whole_or_equals_nothing_test() ->
    Of = fun(U) -> maps:get(identities, distsec_identity:of_certificate(certificate([names([U])]))) end,
    Whole = "spiffe://d/" ++ lists:duplicate(2037, $a),
    ?assertEqual([list_to_binary(Whole)], Of(Whole)),
    [Cut] = Of(Whole ++ "b"),
    ?assertEqual(0, binary:longest_common_prefix([<<"spiffe://d/">>, Cut])).

%% ---- DNS names and subjects ---------------------------------------------------------------------

dns_names_are_in_lower_case_and_name_one_host_test_() ->
    [?_assertEqual(Expected, names_of([hosts([Host])], []))
     || {Expected, Host} <-
            [{[<<"dns:db1.example.net">>], "DB1.Example.net"}, {[<<"dns:h">>], "h"},
             {[<<"dns:xn--bcher-kva.example">>], "xn--bcher-kva.example"},
             {[<<"dns:a_b.example">>], "a_b.example"}]
            ++ [{[], Bad} || Bad <- ["*.example.net", "a.*.net", "h.", ".h", "", "a..b", "-a.b", "a-.b",
                                     "127.0.0.1", "a b", [0 | "h"], "h" ++ [0], "b\303\274cher.example",
                                     [16#43d], "a/b", "a@b", "dns:h", lists:duplicate(64, $a),
                                     lists:append(lists:duplicate(127, "a.")) ++ "aa"]]].

with_more_dns_names_than_are_looked_at_there_are_no_names_test() ->
    Hosts = fun(N) -> [hosts(["h" ++ integer_to_list(I) || I <- lists:seq(1, N)])] end,
    Subject = [[{?'id-at-commonName', {utf8String, <<"a">>}}]],
    ?assertEqual(17, length(names_of(Hosts(16), Subject))),
    ?assertEqual([], names_of(Hosts(17), Subject)).

the_string_type_of_a_value_makes_no_difference_test_() ->
    Der = fun(Tag, Bytes) -> <<Tag, (byte_size(Bytes)), Bytes/binary>> end,
    [?_assertEqual([<<"dn:2.5.4.3:504f4c">>], subject([[{?'id-at-commonName', Value}]]))
     || Value <- [{utf8String, <<"POL">>}, {printableString, "POL"}, {teletexString, "POL"},
                  {bmpString, "POL"}, {universalString, [{0, 0, 0, $P}, $O, $L]}, "POL",
                  Der(12, <<"POL">>), Der(19, <<"POL">>), Der(22, <<"POL">>),
                  Der(30, <<0, $P, 0, $O, 0, $L>>), {asn1_OPENTYPE, Der(12, <<"POL">>)},
                  <<12, 16#81, 3, "POL">>, <<12, 16#82, 0, 3, "POL">>]].

values_are_in_utf8_test_() ->
    [?_assertEqual([<<"dn:2.5.4.3:d09f">>], subject([[{?'id-at-commonName', Value}]]))
     || Value <- [{utf8String, <<"П"/utf8>>}, {bmpString, [{0, 0, 4, 31}]}, {universalString, [16#41f]},
                  <<30, 2, 4, 31>>, <<28, 4, 0, 0, 4, 31>>]].

the_order_of_rdns_counts_and_that_within_one_does_not_test() ->
    O = {?'id-at-organizationName', {utf8String, <<"o">>}},
    C = {?'id-at-commonName', {utf8String, <<"c">>}},
    ?assertEqual([<<"dn:2.5.4.10:6f,2.5.4.3:63">>], subject([[O], [C]])),
    ?assertEqual([<<"dn:2.5.4.3:63,2.5.4.10:6f">>], subject([[C], [O]])),
    ?assertEqual([<<"dn:2.5.4.10:6f+2.5.4.3:63">>], subject([[C, O]])),
    ?assertEqual(subject([[O, C]]), subject([[C, O]])).

%% `CN=a,O=b` is one common name or two attributes, as text; not here.
a_separator_in_a_value_is_no_separator_test() ->
    Value = fun(Bytes) -> [{?'id-at-commonName', {utf8String, Bytes}}] end,
    Subjects = [[Value(<<"a,O=b">>)], [Value(<<"a">>), Value(<<"b">>)], [Value(<<"a+CN=b">>)],
                [Value(<<"a,2.5.4.3:62">>)], [Value(<<"a">>)], [Value(<<"a ">>)], [Value(<<"A">>)]],
    ?assertEqual(length(Subjects), length(lists:usort(lists:map(fun subject/1, Subjects)))).

what_cannot_be_compared_is_no_subject_test_() ->
    Cn = ?'id-at-commonName',
    [?_assertEqual([], subject(Subject))
     || Subject <- [[], [[]], asn1_NOVALUE, {rdnSequence, x}, [x], [[{Cn, x}]], [[{x, "a"}]], [[{{}, "a"}]]]
            ++ [[[{Cn, Value}]]
                || Value <- ["", {utf8String, <<>>}, {utf8String, <<255>>}, {printableString, [200]},
                             {teletexString, [228]}, [16#43f], {bmpString, [16#d800]}, {bmpString, x},
                             {universalString, [{255, 255, 255, 255}]}, <<>>, <<12>>, <<12, 2, $a>>,
                             <<12, 1, $a, $b>>, <<12, 16#80, $a, 0, 0>>, <<3, 2, 0, 1>>, <<30, 1, $a>>,
                             {utf8String, binary:copy(<<"a">>, 257)}, lists:duplicate(100000, $a),
                             {bmpString, lists:duplicate(257, $a)}, {asn1_OPENTYPE, x}]]
            ++ [[[{Cn, {utf8String, <<"a", C/utf8, "b">>}}]]
                || C <- [0, 10, 27, 127, 16#85, 16#ad, 16#61c, 16#200b, 16#200e, 16#202e, 16#2066,
                         16#feff, 16#e0041]]
            ++ [[[{Cn, "a"}, {Cn, "b"}]],                          % the same attribute twice in one RDN
                [[{Cn, "a"}] || _ <- lists:seq(1, 17)],
                [[{{2, 5, 4, N}, "a"} || N <- lists:seq(1, 17)]],
                [[{list_to_tuple(lists:duplicate(40, 10)), "a"}]],
                [[{Cn, {utf8String, binary:copy(<<"a">>, 250)}}] || _ <- lists:seq(1, 5)]]].

many_parts_cost_little_test() ->
    Rdn = [{?'id-at-commonName', {utf8String, binary:copy(<<"a">>, 1000)}} || _ <- lists:seq(1, 1000)],
    Large = certificate([], lists:duplicate(100, Rdn)),
    {reductions, Before} = process_info(self(), reductions),
    ?assertMatch(#{names := []}, distsec_identity:of_certificate(Large)),
    {reductions, After} = process_info(self(), reductions),
    ?assert(After - Before < 100000).

%% ---- for people ---------------------------------------------------------------------------------

%% As `distsec allow --identity` takes it.
shows_the_uri_else_the_subject_else_a_host_test() ->
    Shown = fun(Extensions, Subject) ->
                    distsec_identity:shown(distsec_identity:of_certificate(certificate(Extensions, Subject)))
            end,
    Subject = [[{?'id-at-organizationName', {utf8String, <<"a,b \"c\"">>}}],
               [{?'id-at-commonName', {utf8String, <<" #\n">>}}, {{1, 2, 3}, "#x "}]],
    ?assertEqual(<<"spiffe://d/x">>, Shown([names(["spiffe://d/x", "b"])], Subject)),
    ?assertEqual(<<"dn:CN=\\ #\\0a+1.2.3=\\#x\\ ,O=a\\,b \\\"c\\\"">>, Shown([hosts(["h"])], Subject)),
    ?assertEqual(<<"dns:h">>, Shown([hosts(["h"])], [])),
    ?assertEqual(undefined, Shown([], [])),
    Long = [[{?'id-at-commonName', {utf8String, binary:copy(<<"a">>, 256)}}] || _ <- lists:seq(1, 16)],
    ?assertEqual(255, byte_size(Shown([], Long))).

a_role_needs_its_usage_and_a_signature_key_test_() ->
    Client = ?'id-kp-clientAuth', Server = ?'id-kp-serverAuth',
    [?_assertEqual(Fits, distsec_identity:usage_fits(certificate(Extensions), Role))
     || {Fits, Role, Extensions} <-
            [{true, client, usages([digitalSignature], [Client])},
             {true, server, usages([digitalSignature], [Client, Server])},
             {false, server, usages([digitalSignature], [Client])},
             {false, client, usages([keyEncipherment], [Client])},
             {false, client, usages([digitalSignature], [])},
             {false, client, usages([digitalSignature], [?'anyExtendedKeyUsage'])},
             {false, client, []}, {false, client, asn1_NOVALUE}]].

years_before_2050_are_of_this_century_test() ->
    ?assertEqual(2524607999, distsec_identity:unix_time({utcTime, "491231235959Z"})),
    ?assertEqual(0, distsec_identity:unix_time({generalTime, "19700101000000Z"})).
