-module(distsec_identity_tests).
-include_lib("eunit/include/eunit.hrl").
-include_lib("public_key/include/public_key.hrl").

certificate(Extensions) ->
    #'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{
        serialNumber = 16#0A1B, extensions = Extensions,
        issuer = {rdnSequence, [[#'AttributeTypeAndValue'{type = ?'id-at-organizationName',
                                                          value = {utf8String, <<"demo">>}}],
                                [#'AttributeTypeAndValue'{type = ?'id-at-commonName',
                                                          value = {utf8String, <<"CA">>}}]]},
        validity = #'Validity'{notBefore = {utcTime, "700101000000Z"},
                               notAfter = {generalTime, "20380119031408Z"}}}}.

names(Uris) ->
    #'Extension'{extnID = ?'id-ce-subjectAltName',
                 extnValue = [{dNSName, "h"} | [{uniformResourceIdentifier, U} || U <- Uris]]}.

usages(Key, Extended) ->
    [#'Extension'{extnID = ?'id-ce-keyUsage', extnValue = Key},
     #'Extension'{extnID = ?'id-ce-extKeyUsage', extnValue = Extended}].

reads_what_a_claim_needs_test() ->
    ?assertEqual(#{identities => [<<"spiffe://d/x">>], serial => <<"0a1b">>,
                   issuer => <<"CN=CA,O=demo">>, not_before => 0, not_after => 2147483648},
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

a_role_needs_its_usage_and_a_signature_key_test_() ->
    Client = ?'id-kp-clientAuth', Server = ?'id-kp-serverAuth',
    [?_assertEqual(Fits, distsec_identity:usage_fits(certificate(Extensions), Role))
     || {Fits, Role, Extensions} <-
            [{true, client, usages([digitalSignature], [Client])},
             {true, server, usages([digitalSignature], [Client, Server])},
             {false, server, usages([digitalSignature], [Client])},
             {false, client, usages([keyEncipherment], [Client])},
             {false, client, usages([digitalSignature], [])},
             {false, client, []}, {false, client, asn1_NOVALUE}]].

years_before_2050_are_of_this_century_test() ->
    ?assertEqual(2524607999, distsec_identity:unix_time({utcTime, "491231235959Z"})),
    ?assertEqual(0, distsec_identity:unix_time({generalTime, "19700101000000Z"})).
