%% What a certificate says about its holder (pure): identities, serial, issuer, validity, usage.
%%
%% A SPIFFE ID is the one URI in the subject alternative name (X509-SVID, section 2). Beside it
%% stand the names of existing certificates, in texts whose equality is equality of structure:
%%
%%   dns:poller.example.net           a DNS name of the subject alternative name, in lower case
%%   dn:2.5.4.10:6f,2.5.4.3:61        the subject: `,` between its RDNs, in their order, `+` between
%%                                    the attributes of one, sorted; each its OID and, in hex, its
%%                                    value in UTF-8, whatever string type it came in
%%
%% distsec.model.identities writes the same texts of what an operator wrote; tests/vectors compares.
-module(distsec_identity).

-include_lib("public_key/include/public_key.hrl").

-export([of_certificate/1, usage_fits/2, is_certificate_name/1]).
-export([shown/1, subject/1, hex/1, serial/1, readable/1, unix_time/1]).

-export_type([identity/0]).

-type identity() :: #{identities := [binary()], names := [binary()], usages := [client | server],
                      subject := binary(), serial := binary(), issuer := binary(),
                      not_before := integer(), not_after := integer()}.

-define(MAX_TEXT, 255).
-define(MAX_URIS, 8).
-define(MAX_URI_BYTES, 2048). % SPIFFE-ID, section 2.3
-define(MAX_DNS_NAMES, 16).
-define(MAX_ATTRIBUTES, 16).  % of a subject, in all its RDNs
-define(MAX_VALUE_BYTES, 256).
-define(MAX_OID_BYTES, 64).
-define(MAX_DN_BYTES, 2048).

%% Everything a claim needs of a decoded certificate. What is bounded by leaving something out is
%% bounded so that it admits nobody: too many URIs are still several, too many names are none.
-spec of_certificate(#'OTPCertificate'{}) -> identity().
of_certificate(#'OTPCertificate'{tbsCertificate = Tbs}) ->
    #'OTPTBSCertificate'{validity = #'Validity'{notBefore = NotBefore, notAfter = NotAfter},
                         extensions = Extensions, subject = Subject} = Tbs,
    #{identities => uris(Extensions),
      names => names(Extensions, Subject),
      usages => usages(Extensions),
      subject => readable(Subject),
      serial => serial(Tbs#'OTPTBSCertificate'.serialNumber),
      issuer => readable(Tbs#'OTPTBSCertificate'.issuer),
      not_before => unix_time(NotBefore),
      not_after => unix_time(NotAfter)}.

%% What people are shown of whom a certificate is: its URI, else its subject, else a DNS name; as
%% `distsec allow --identity` takes it. Never compared.
-spec shown(identity()) -> binary() | undefined.
shown(#{identities := [Uri | _]}) -> text(Uri);
shown(#{subject := Subject}) when Subject =/= <<>> -> text(<<"dn:", Subject/binary>>);
shown(#{names := [Name | _]}) -> text(Name);
shown(_) -> undefined.

uris(Extensions) ->
    lists:sublist([uri(Uri) || {uniformResourceIdentifier, Uri} <- alternative_names(Extensions)],
                  ?MAX_URIS).

%% A URI that is longer than a SPIFFE ID may be is shown and equals nothing, nor begins as anything.
uri(Uri) ->
    case whole(Uri, ?MAX_URI_BYTES) of
        {ok, Bytes} -> Bytes;
        error -> text(iolist_to_binary([<<"…"/utf8>>, text(Uri)]))
    end.

alternative_names(Extensions) when is_list(Extensions) ->
    lists:append([Names || #'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = Names}
                               <- Extensions, is_list(Names)]);
alternative_names(_) ->
    [].

%% ---- names of existing certificates ------------------------------------------------------------

%% Whether an identity of the policy is one of these names, not a URI.
-spec is_certificate_name(binary()) -> boolean().
is_certificate_name(Identity) ->
    starts_with(Identity, <<"dns:">>) orelse starts_with(Identity, <<"dn:">>).

starts_with(Binary, Prefix) ->
    binary:longest_common_prefix([Prefix, Binary]) =:= byte_size(Prefix).

%% With too many DNS names there are no names at all: one that was left out might be another node's.
names(Extensions, Subject) ->
    Dns = [Name || {dNSName, Name} <- alternative_names(Extensions)],
    case length(Dns) =< ?MAX_DNS_NAMES of
        true -> lists:usort([N || Name <- Dns, {ok, N} <- [dns(Name)]]) ++ subject(Subject);
        false -> []
    end.

%% Host names as they are written in the DNS; a wildcard names nobody, nor does an address.
dns(Name) ->
    case ascii(Name, 253) of
        {ok, Host} ->
            Lower = string:lowercase(Host),
            Labels = binary:split(Lower, <<".">>, [global]),
            Digits = lists:all(fun(C) -> C >= $0 andalso C =< $9 end,
                               binary_to_list(lists:last(Labels))),
            case lists:all(fun label/1, Labels) andalso not Digits of
                true -> {ok, <<"dns:", Lower/binary>>};
                false -> error
            end;
        error ->
            error
    end.

label(Label) ->
    byte_size(Label) > 0 andalso byte_size(Label) =< 63
        andalso binary:first(Label) =/= $- andalso binary:last(Label) =/= $-
        andalso lists:all(fun(C) -> (C >= $a andalso C =< $z) orelse (C >= $0 andalso C =< $9)
                                        orelse C =:= $- orelse C =:= $_
                          end, binary_to_list(Label)).

%% The subject as `dn:…`, if all of it can be compared: one value that cannot, and there is none.
-spec subject(term()) -> [binary()].
subject({rdnSequence, Rdns}) when is_list(Rdns), Rdns =/= [] ->
    try
        true = attributes(Rdns, 0) =< ?MAX_ATTRIBUTES,
        Text = iolist_to_binary([<<"dn:">>, lists:join($,, lists:map(fun rdn/1, Rdns))]),
        true = byte_size(Text) =< ?MAX_DN_BYTES,
        [Text]
    catch
        error:_ -> []
    end;
subject(_) ->
    [].

attributes([Rdn | Rest], N) when N =< ?MAX_ATTRIBUTES -> attributes(Rest, N + length(Rdn));
attributes(_, N) -> N.

rdn([_ | _] = Attributes) ->
    Pairs = [{oid(Type), comparable(Value)}
             || #'AttributeTypeAndValue'{type = Type, value = Value} <- Attributes],
    true = length(Pairs) =:= length(Attributes),
    true = length(lists:ukeysort(1, Pairs)) =:= length(Pairs),
    lists:join($+, lists:sort([<<Oid/binary, $:, (hex(Value))/binary>> || {Oid, Value} <- Pairs])).

oid(Type) ->
    Text = iolist_to_binary(lists:join($., [integer_to_list(N) || N <- tuple_to_list(Type)])),
    true = byte_size(Text) > 0 andalso byte_size(Text) =< ?MAX_OID_BYTES,
    Text.

comparable(Value) ->
    {ok, Text} = utf8(Value),
    true = Text =/= <<>>,
    false = lists:any(fun invisible/1, unicode:characters_to_list(Text)),
    Text.

%% What a reader would not see, or see elsewhere: controls, bidi, zero width; the same list as in
%% distsec.model.identities.
invisible(C) ->
    C < 16#20 orelse (C >= 16#7F andalso C =< 16#9F) orelse C =:= 16#AD orelse C =:= 16#61C
        orelse C =:= 16#180E orelse (C >= 16#200B andalso C =< 16#200F)
        orelse (C >= 16#2028 andalso C =< 16#202E) orelse (C >= 16#2060 andalso C =< 16#206F)
        orelse C =:= 16#FEFF orelse (C >= 16#FFF9 andalso C =< 16#FFFB)
        orelse (C >= 16#E0000 andalso C =< 16#E0FFF).

%% The value of an attribute in UTF-8. public_key decodes those types that RFC 5280 lists; the
%% others it leaves in DER, since OTP 28 marked as such.
utf8({utf8String, Bytes}) when is_binary(Bytes), byte_size(Bytes) =< ?MAX_VALUE_BYTES ->
    encoded(unicode:characters_to_binary(Bytes, utf8, utf8));
utf8({printableString, Text}) -> ascii(Text, ?MAX_VALUE_BYTES);
utf8({teletexString, Text}) -> ascii(Text, ?MAX_VALUE_BYTES); % T.61 and ASCII agree on ASCII
utf8({Wide, Text}) when Wide =:= bmpString; Wide =:= universalString -> wide(Text);
utf8({asn1_OPENTYPE, Der}) -> der(Der);
utf8(Der) when is_binary(Der) -> der(Der);
utf8(Text) -> ascii(Text, ?MAX_VALUE_BYTES). % IA5String, PrintableString

%% Characters above 255 come as quadruples (asn1: BMPString, UniversalString).
wide(Text) when is_list(Text) ->
    case length(Text) =< ?MAX_VALUE_BYTES of
        true -> encoded(unicode:characters_to_binary([point(C) || C <- Text]));
        false -> error
    end;
wide(_) ->
    error.

point({A, B, C, D}) -> (A bsl 24) bor (B bsl 16) bor (C bsl 8) bor D;
point(C) -> C.

%% One string in DER (X.690, 8.1), with its tag (X.680, 8.4).
der(Der) when is_binary(Der), Der =/= <<>>, byte_size(Der) =< 4 * ?MAX_VALUE_BYTES + 4 ->
    [Tag | Rest] = binary_to_list(Der),
    case content(Rest) of
        {ok, Bytes} when Tag =:= 12 -> utf8({utf8String, list_to_binary(Bytes)});
        {ok, Bytes} when Tag =:= 19; Tag =:= 20; Tag =:= 22 -> ascii(Bytes, ?MAX_VALUE_BYTES);
        {ok, Bytes} when Tag =:= 28 -> encoded(unicode:characters_to_binary(list_to_binary(Bytes),
                                                                            {utf32, big}, utf8));
        {ok, Bytes} when Tag =:= 30 -> encoded(unicode:characters_to_binary(list_to_binary(Bytes),
                                                                            {utf16, big}, utf8));
        _ -> error
    end;
der(_) ->
    error.

content([Length | Bytes]) when Length < 16#80, length(Bytes) =:= Length -> {ok, Bytes};
content([16#81, Length | Bytes]) when length(Bytes) =:= Length -> {ok, Bytes};
content([16#82, High, Low | Bytes]) when length(Bytes) =:= High * 256 + Low -> {ok, Bytes};
content(_) -> error.

encoded(Bytes) when is_binary(Bytes), byte_size(Bytes) =< ?MAX_VALUE_BYTES -> {ok, Bytes};
encoded(_) -> error.

ascii(Text, Most) ->
    case whole(Text, Most) of
        {ok, Bytes} ->
            case lists:all(fun(C) -> C < 128 end, binary_to_list(Bytes)) of
                true -> {ok, Bytes};
                false -> error
            end;
        error -> error
    end.

%% A text of at most so many bytes, not cut.
whole(Text, Most) when is_list(Text) ->
    try list_to_binary(lists:sublist(Text, Most + 1)) of
        Bytes -> whole(Bytes, Most)
    catch
        error:_ -> error
    end;
whole(Bytes, Most) when is_binary(Bytes), byte_size(Bytes) =< Most -> {ok, Bytes};
whole(_, _) -> error.

%% ---- usage -------------------------------------------------------------------------------------

%% Whether a peer that acts as `client` or `server` of the TLS connection may use this certificate
%% so. Whether it is good for a node at all, which acts as both, is the policy's to say.
-spec usage_fits(#'OTPCertificate'{}, client | server) -> boolean().
usage_fits(#'OTPCertificate'{tbsCertificate = #'OTPTBSCertificate'{extensions = Extensions}},
           PeerRole) ->
    lists:member(PeerRole, usages(Extensions)).

%% What a certificate may be used for: its extended key usages, where its key may sign. None without
%% digitalSignature, which is all that TLS 1.3 does with it (RFC 8446, 4.4.2.2).
usages(Extensions) when is_list(Extensions) ->
    case contains(?'id-ce-keyUsage', digitalSignature, Extensions) of
        true ->
            [Role || {Role, Usage} <- [{client, ?'id-kp-clientAuth'},
                                       {server, ?'id-kp-serverAuth'}],
                     contains(?'id-ce-extKeyUsage', Usage, Extensions)];
        false -> []
    end;
usages(_) ->
    [].

contains(Id, Wanted, Extensions) ->
    lists:any(fun(#'Extension'{extnID = I, extnValue = Value}) ->
                      I =:= Id andalso is_list(Value) andalso lists:member(Wanted, Value)
              end, Extensions).

%% ---- for people, and numbers -------------------------------------------------------------------

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

%% A name as text (RFC 4514), most specific part first: `CN=CA,O=demo`. Never compared.
-spec readable(term()) -> binary().
readable({rdnSequence, Rdns}) when is_list(Rdns) ->
    Parts = [lists:join($+, [[short(Type), $=, escaped(Value)]
                             || #'AttributeTypeAndValue'{type = Type, value = Value}
                                    <- lists:sublist(Rdn, 4)])
             || Rdn <- lists:reverse(lists:sublist(Rdns, 16)), is_list(Rdn)],
    text(iolist_to_binary(lists:join($,, Parts)));
readable(_) ->
    <<>>.

%% RFC 4514, section 3, and what has no short name there by its number.
short(?'id-at-commonName') -> "CN";
short(?'id-at-localityName') -> "L";
short(?'id-at-stateOrProvinceName') -> "ST";
short(?'id-at-organizationName') -> "O";
short(?'id-at-organizationalUnitName') -> "OU";
short(?'id-at-countryName') -> "C";
short({2, 5, 4, 9}) -> "STREET";
short(?'id-domainComponent') -> "DC";
short({0, 9, 2342, 19200300, 100, 1, 1}) -> "UID";
short(Type) when is_tuple(Type) ->
    lists:join($., [integer_to_list(N) || N <- tuple_to_list(Type), is_integer(N)]);
short(_) -> "?".

%% RFC 4514, section 2.4.
escaped(Value) ->
    case utf8(Value) of
        {ok, Text} -> escape_first(unicode:characters_to_list(Text));
        error -> "?"
    end.

escape_first([$# | Rest]) -> [$\\, $# | escape(Rest)];
escape_first([$\s | Rest]) -> [$\\, $\s | escape(Rest)];
escape_first(Rest) -> escape(Rest).

escape([$\s]) -> [$\\, $\s];
escape([C | Rest]) ->
    case {lists:member(C, "\"+,;<>\\"), invisible(C)} of
        {true, _} -> [$\\, C | escape(Rest)];
        {_, true} -> [[[$\\, hex(<<Byte>>)] || Byte <- binary_to_list(<<C/utf8>>)] | escape(Rest)];
        _ -> [<<C/utf8>> | escape(Rest)]
    end;
escape([]) -> [].

%% Bounded, with a mark where something was cut off.
text(Text) when is_binary(Text), byte_size(Text) =< ?MAX_TEXT ->
    Text;
text(Text) when is_binary(Text) ->
    Mark = <<"…"/utf8>>,
    Kept = case unicode:characters_to_binary(binary:part(Text, 0, ?MAX_TEXT - byte_size(Mark))) of
               {_, Whole, _} -> Whole; % up to the character that was cut
               Whole -> Whole
           end,
    <<Kept/binary, Mark/binary>>;
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
