%% What a certificate says about its holder (pure): identities, serial, issuer, validity, usage.
%% A SPIFFE ID is the one URI in the subject alternative name (X509-SVID, section 2).
-module(distsec_identity).

-include_lib("public_key/include/public_key.hrl").

-export([of_certificate/1, usage_fits/2, hex/1, serial/1, issuer/1, unix_time/1]).

-export_type([identity/0]).

-type identity() :: #{identities := [binary()], serial := binary(), issuer := binary(),
                      not_before := integer(), not_after := integer()}.

-define(MAX_TEXT, 255).
-define(MAX_URIS, 8).

%% Everything a claim needs of a decoded certificate. Texts are bounded; a certificate with too
%% many URIs shows them as several identities, which no decision accepts.
-spec of_certificate(#'OTPCertificate'{}) -> identity().
of_certificate(#'OTPCertificate'{tbsCertificate = Tbs}) ->
    #'OTPTBSCertificate'{validity = #'Validity'{notBefore = NotBefore, notAfter = NotAfter}} = Tbs,
    #{identities => uris(Tbs#'OTPTBSCertificate'.extensions),
      serial => serial(Tbs#'OTPTBSCertificate'.serialNumber),
      issuer => issuer(Tbs#'OTPTBSCertificate'.issuer),
      not_before => unix_time(NotBefore),
      not_after => unix_time(NotAfter)}.

uris(Extensions) when is_list(Extensions) ->
    Found = [text(Uri) || #'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = Names}
                              <- Extensions,
                          is_list(Names), {uniformResourceIdentifier, Uri} <- Names],
    lists:sublist(Found, ?MAX_URIS);
uris(_) ->
    [].

%% Whether a peer that acts as `client` or `server` of the TLS connection may use this
%% certificate so: digitalSignature, and the extended key usage of its role, both present.
-spec usage_fits(#'OTPCertificate'{}, client | server) -> boolean().
usage_fits(#'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{extensions = Extensions}},
           PeerRole) when is_list(Extensions) ->
    Wanted = case PeerRole of
                 client -> ?'id-kp-clientAuth';
                 server -> ?'id-kp-serverAuth'
             end,
    contains(?'id-ce-extKeyUsage', Wanted, Extensions)
        andalso contains(?'id-ce-keyUsage', digitalSignature, Extensions);
usage_fits(_, _) ->
    false.

contains(Id, Wanted, Extensions) ->
    lists:any(fun(#'Extension'{extnID = I, extnValue = Value}) ->
                      I =:= Id andalso is_list(Value) andalso lists:member(Wanted, Value)
              end, Extensions).

%% Lower-case hex without a sign or leading zeros beyond the byte; bounded, since a serial is
%% as long as its issuer likes.
-spec serial(integer()) -> binary().
serial(Number) when is_integer(Number), Number >= 0 ->
    hex(binary:encode_unsigned(Number band ((1 bsl 512) - 1)));
serial(_) ->
    <<"00">>.

-spec hex(binary()) -> binary().
hex(Bytes) ->
    << <<(digit(N))>> || <<N:4>> <= Bytes >>.

digit(N) when N < 10 -> $0 + N;
digit(N) -> $a + N - 10.

%% The issuer as text, for people, most specific part first (RFC 4514, 2.1): `CN=CA,O=demo`. Never
%% compared.
-spec issuer(term()) -> binary().
issuer({rdnSequence, Rdns}) when is_list(Rdns) ->
    Parts = [[short(Type), $=, text(value(Value))]
             || Rdn <- lists:reverse(lists:sublist(Rdns, 16)), is_list(Rdn),
                #'AttributeTypeAndValue'{type = Type, value = Value} <- lists:sublist(Rdn, 4)],
    text(iolist_to_binary(lists:join($,, Parts)));
issuer(_) ->
    <<>>.

short(?'id-at-commonName') -> "CN";
short(?'id-at-organizationName') -> "O";
short(?'id-at-organizationalUnitName') -> "OU";
short(?'id-at-countryName') -> "C";
short(Type) when is_tuple(Type) ->
    lists:join($., [integer_to_list(N) || N <- tuple_to_list(Type), is_integer(N)]);
short(_) -> "?".

value({_Tag, Text}) -> Text;
value(Text) -> Text.

text(Text) when is_binary(Text) ->
    binary:part(Text, 0, min(byte_size(Text), ?MAX_TEXT));
text(Text) when is_list(Text) ->
    try unicode:characters_to_binary(lists:sublist(Text, ?MAX_TEXT)) of
        Binary when is_binary(Binary) -> text(Binary);
        _ -> <<>>
    catch
        error:_ -> <<>>
    end;
text(_) ->
    <<>>.

%% Unix seconds of a validity bound (RFC 5280, 4.1.2.5).
-spec unix_time({utcTime | generalTime, string()}) -> integer().
unix_time({utcTime, [Y1, Y2 | Rest]}) ->
    Year = list_to_integer([Y1, Y2]),
    Century = if Year >= 50 -> "19"; true -> "20" end,
    unix_time({generalTime, Century ++ [Y1, Y2 | Rest]});
unix_time({generalTime, [Y1, Y2, Y3, Y4, Mo1, Mo2, D1, D2, H1, H2, Mi1, Mi2, S1, S2 | _]}) ->
    Date = {list_to_integer([Y1, Y2, Y3, Y4]), list_to_integer([Mo1, Mo2]),
            list_to_integer([D1, D2])},
    Time = {list_to_integer([H1, H2]), list_to_integer([Mi1, Mi2]), list_to_integer([S1, S2])},
    calendar:datetime_to_gregorian_seconds({Date, Time}) - 62167219200.
