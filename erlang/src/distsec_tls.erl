%% TLS of the carrier: the options, made of the optfile once and kept as DER, so that no connection reads
%% a file or passes ssl's PEM cache; the handshakes; and what may be asked of an established session.
%% What it needs of ssl's insides is here and nowhere else (MAINTENANCE.md), and distsec_selfcheck tries
%% all of it in each node before that node listens.
-module(distsec_tls).

-include_lib("public_key/include/public_key.hrl").

-export([load/0, read/0, own/0, is_behind/0, accept/3, connect/3, connect_for_proof/3, purpose/1, peer/1, details/1,
         controller/1, failure/1, option_problem/1]).

-export_type([served/0]).

-define(KEY, {distsec, tls}).
-define(MAX_FILE_BYTES, 1048576).
%% The longest frame of the distribution handshake is a challenge: 19 bytes and a name of 255.
-define(MAX_FRAME_BYTES, 512).
%% A chain of several certificates fits; the default is four times as much.
-define(MAX_HANDSHAKE_BYTES, 65536).
%% It starts some 200 (OTP 25, busy machine) to some thousands in a second.
-define(MAX_WAITING, 32).

-type role() :: server | client.
%% What a node shows: its certificate's serial and end, and the SHA-256 of each CA that it trusts.
-type served() :: #{serial := binary(), not_after := integer(), trusted := [binary()]}.

%% Negotiated (RFC 7301) on a connection that is no link, but proves anew who is at either end of one.
-define(PROOF, <<"distsec-proof/1">>).

%% What an optfile may hold. Session tickets, early data, kTLS, SNI functions and whatever else lets a
%% session be set up without the peer's certificate are not here (beam/tls_options.py says of each why).
-define(KNOWN, [certfile, keyfile, cacertfile, verify, versions, ciphers, verify_fun, fail_if_no_peer_cert,
                crl_cache, crl_check, depth, hibernate_after, key_update_at, log_level, max_handshake_size,
                signature_algs, supported_groups, receiver_spawn_opts, sender_spawn_opts]).

%% Reads the node's files and uses them from now on. An error names what is wrong, and changes nothing:
%% distsec_guard says it before it halts, and a node that runs goes on with what it had.
-spec load() -> ok | {error, string()}.
load() ->
    case read() of
        {ok, #{served := Served} = Loaded} ->
            persistent_term:put(?KEY, Loaded#{served := Served#{loaded_ms => erlang:monotonic_time(millisecond)}});
        Error -> Error
    end.

%% Reads and checks them, and changes nothing.
-spec read() -> {ok, #{server := list(), client := list(), served := map()}} | {error, string()}.
read() ->
    try
        Loaded = maps:from_list([{Role, options(Role)} || Role <- [server, client]]),
        {ok, Loaded#{served => served(maps:get(server, Loaded))}}
    catch
        throw:{tls, Text} -> {error, Text}
    end.

%% What handshakes show now; undefined where no options were loaded (the stock carrier).
-spec own() -> #{serial := binary(), not_after := integer(), trusted := [binary()], loaded_ms := integer()}
             | undefined.
own() ->
    case persistent_term:get(?KEY, undefined) of
        #{served := Served} -> Served;
        undefined -> undefined
    end.

served(Options) ->
    [Leaf | _] = proplists:get_value(cert, Options),
    Certificate = decoded(Leaf, certfile),
    key_fits(proplists:get_value(key, Options), Certificate)
        orelse wrong("keyfile holds the key of another certificate", []),
    #{serial := Serial, not_before := NotBefore, not_after := NotAfter} = distsec_identity:of_certificate(Certificate),
    #{serial => Serial, not_before => NotBefore, not_after => NotAfter,
      trusted => lists:usort([distsec_identity:hex(crypto:hash(sha256, Der))
                              || Der <- proplists:get_value(cacerts, Options)])}.

decoded(Der, Name) ->
    try public_key:pkix_decode_cert(Der, otp)
    catch error:_ -> wrong("~s holds no certificate that can be read", [Name])
    end.

%% A signature with the one verifies with the other.
key_fits({Type, Der}, Certificate) ->
    Message = <<"distsec">>,
    try
        Key = public_key:pem_entry_decode({Type, Der, not_encrypted}),
        {Public, Digest} = public_of(Certificate),
        public_key:verify(Message, Digest, public_key:sign(Message, Digest, Key), Public)
    catch error:_ -> false
    end.

public_of(#'OTPCertificate'{tbsCertificate = Tbs}) ->
    #'OTPSubjectPublicKeyInfo'{subjectPublicKey = Key,
                               algorithm = #'PublicKeyAlgorithm'{algorithm = Algorithm, parameters = Parameters}} =
        Tbs#'OTPTBSCertificate'.subjectPublicKeyInfo,
    case {Key, Algorithm} of
        %% RFC 8410: the algorithm is the curve, and has no parameters.
        {#'ECPoint'{}, Curve} when Curve =:= ?'id-Ed25519'; Curve =:= ?'id-Ed448' ->
            {{Key, {namedCurve, Curve}}, none};
        {#'ECPoint'{}, _} -> {{Key, Parameters}, sha256};
        _ -> {Key, sha256}
    end.

options(Role) ->
    Given = try ets:lookup(ssl_dist_opts, Role) of
                [{Role, Options}] -> Options;
                _ -> wrong("the optfile has no ~s options", [Role])
            catch error:badarg -> wrong("there is no -ssl_dist_optfile", [])
            end,
    _ = [wrong("~s.~ts ~ts", [Role, Name, Problem]) || Option <- Given, {Name, Problem} <- option_problem(Option)],
    %% Of one that is given twice some releases take the first and some the last.
    _ = [wrong("~s.~s is given twice", [Role, Name])
         || [Name | _] <- [lists:sort([N || {N, _} <- Given]) -- lists:usort([N || {N, _} <- Given])]],
    lists:foreach(fun(Required) ->
                          proplists:get_value(element(1, Required), Given) =:= element(2, Required)
                              orelse wrong("~s must have ~0p", [Role, Required])
                  end, [{verify, verify_peer}, {versions, ['tlsv1.3']}]
                  ++ [{fail_if_no_peer_cert, true} || Role =:= server]),
    File = fun(Name) -> entries(proplists:get_value(Name, Given), Name) end,
    Certificates = [Der || {'Certificate', Der, not_encrypted} <- File(certfile)],
    Keys = [{Type, Der} || {Type, Der, not_encrypted} <- File(keyfile), Type =/= 'Certificate',
                           Type =/= 'EcpkParameters'],
    Trusted = [Der || {'Certificate', Der, not_encrypted} <- File(cacertfile)],
    Certificates =/= [] orelse wrong("certfile holds no certificate", []),
    Keys =/= [] orelse wrong("keyfile holds no key that is not encrypted", []),
    Trusted =/= [] orelse wrong("cacertfile holds no certificate", []),
    Kept = [Option || {Name, _} = Option <- Given,
                      not lists:member(Name, [certfile, keyfile, cacertfile, verify_fun, log_level,
                                              max_handshake_size])],
    [{cert, chain(Certificates, Trusted)}, {key, hd(Keys)}, {cacerts, Trusted},
     {erl_dist, true}, {session_tickets, disabled}, {log_level, none}, {max_handshake_size, ?MAX_HANDSHAKE_BYTES} | Kept].

%% The node's certificate with those that issued it. With the leaf alone ssl looks for the issuer at each
%% handshake and verifies its signature: 0.5 to 0.8 ms of 5 (OTP 25 to 29).
chain(Given, Trusted) ->
    Last = lists:last(Given),
    case public_key:pkix_is_self_signed(Last) of
        true -> Given;
        false -> Given ++ lists:sublist([Issuer || Issuer <- Trusted, issued(Issuer, Last)], 1)
    end.

%% Of several with the same name only one holds the key (a CA that was made anew).
issued(Issuer, Der) ->
    public_key:pkix_is_issuer(Der, Issuer)
        andalso begin
                    {Key, _} = public_of(public_key:pkix_decode_cert(Issuer, otp)),
                    public_key:pkix_verify(Der, Key)
                end.

%% What is wrong with an option of the optfile, if anything: its name and why.
-spec option_problem(term()) -> [{Name :: string(), Problem :: string()}].
option_problem({Name, _}) when is_atom(Name) ->
    [{atom_to_list(Name), "is no option that this carrier takes"} || not lists:member(Name, ?KNOWN)];
option_problem(Other) ->
    [{lists:flatten(io_lib:format("~0P", [Other, 5])), "is no option that this carrier takes"}].

entries(Path, _Name) when is_binary(Path); is_list(Path) ->
    case prim_file:read_file(Path) of
        {ok, Pem} when byte_size(Pem) =< ?MAX_FILE_BYTES ->
            try public_key:pem_decode(Pem)
            catch error:_ -> wrong("~ts is no PEM file", [Path])
            end;
        _ -> wrong("~ts cannot be read", [Path])
    end;
entries(_, Name) ->
    wrong("the optfile has no ~s", [Name]).

-spec wrong(string(), [term()]) -> no_return().
wrong(Format, Arguments) ->
    throw({tls, lists:flatten(io_lib:format(Format, Arguments))}).

%% ---- handshakes ---------------------------------------------------------------------------------

%% Whether more handshakes wait for the supervisor that starts the processes of each than are worth it
%% (tls_connection_sup:start_child_dist/1). Its queue has no bound.
-spec is_behind() -> boolean().
is_behind() ->
    case whereis(tls_dist_connection_sup) of
        Pid when is_pid(Pid) ->
            case erlang:process_info(Pid, message_queue_len) of
                {message_queue_len, Waiting} -> Waiting >= ?MAX_WAITING;
                undefined -> false % the handshake will say what is wrong
            end;
        undefined -> false
    end.

%% The server's handshake on an accepted socket that the caller owns. State is that of distsec_verify.
-spec accept(gen_tcp:socket(), map(), timeout()) -> {ok, term()} | {error, term()}.
accept(Socket, State, Timeout) ->
    framed(ssl:handshake(Socket, [{alpn_preferred_protocols, [?PROOF]} | with(server, State)], Timeout)).

%% The client's, on a connected one. The host's name is not compared: who the server is, its identity says.
-spec connect(gen_tcp:socket(), map(), timeout()) -> {ok, term()} | {error, term()}.
connect(Socket, State, Timeout) ->
    framed(ssl:connect(Socket, [{server_name_indication, disable} | with(client, State)], Timeout)).

%% The same, to prove anew who is at the ends of a link that is up (distsec_proof).
-spec connect_for_proof(gen_tcp:socket(), map(), timeout()) -> {ok, term()} | {error, term()}.
connect_for_proof(Socket, State, Timeout) ->
    framed(ssl:connect(Socket, [{server_name_indication, disable}, {alpn_advertised_protocols, [?PROOF]}
                                | with(client, State)], Timeout)).

%% What the dialler wants of a session; a peer that has never heard of proofs negotiates none.
-spec purpose(term()) -> link | proof | closed.
purpose(Ssl) ->
    case ssl:negotiated_protocol(Ssl) of
        {ok, ?PROOF} -> proof;
        {error, protocol_not_negotiated} -> link;
        _ -> closed
    end.

%% Frames with a length of four bytes, as after nodeup, and none longer than a handshake needs. These are
%% no options of the TLS handshake: there ssl takes them from the socket below.
framed({ok, Ssl}) ->
    case ssl:setopts(Ssl, [{packet, 4}, {packet_size, ?MAX_FRAME_BYTES}]) of
        ok -> {ok, Ssl};
        {error, _} = Error -> _ = ssl:close(Ssl), Error
    end;
framed({error, _} = Error) ->
    Error;
framed(Other) ->
    {error, Other}.

-spec with(role(), map()) -> list().
with(Role, State) ->
    #{Role := Options} = persistent_term:get(?KEY),
    [{verify_fun, {fun distsec_verify:verify/3, State#{role => Role}}} | Options].

%% Whose certificate the session was made with. Whatever the handshake said: with none shown, or another
%% version than was asked for, the session is nobody's (CVE-2026-89422, CVE-2026-55953).
-spec peer(term()) -> {ok, distsec_identity:identity()}
                    | {error, certificate_required | protocol_version | closed}.
peer(Ssl) ->
    case {ssl:connection_information(Ssl, [protocol]), ssl:peercert(Ssl)} of
        {{ok, [{protocol, 'tlsv1.3'}]}, {ok, Der}} when is_binary(Der) ->
            {ok, distsec_identity:of_certificate(public_key:pkix_decode_cert(Der, otp))};
        {{ok, [{protocol, 'tlsv1.3'}]}, {error, Why}} when Why =/= no_peercert -> {error, closed};
        {{ok, [{protocol, 'tlsv1.3'}]}, _} -> {error, certificate_required};
        {{ok, _}, _} -> {error, protocol_version};
        {{error, _}, _} -> {error, closed} % by the peer, which did not stay for this
    end.

-spec details(term()) -> #{tls_version := binary() | undefined, cipher := binary() | undefined}.
details(Ssl) ->
    case ssl:connection_information(Ssl, [protocol, selected_cipher_suite]) of
        {ok, Facts} ->
            #{tls_version => distsec_report:text(proplists:get_value(protocol, Facts)),
              cipher => distsec_links:cipher(proplists:get_value(selected_cipher_suite, Facts))};
        _ -> #{tls_version => undefined, cipher => undefined}
    end.

%% The process that sends, which the emulator takes as the distribution controller (inet_tls_dist,
%% #sslsocket{}: `pid = [Receiver, Sender | _]` up to OTP 27, `payload_sender` from 28 on).
-spec controller(term()) -> pid() | undefined.
controller({sslsocket, _, [_, Sender | _]}) when is_pid(Sender) -> Sender;
controller(Socket) when is_tuple(Socket), tuple_size(Socket) > 4, element(1, Socket) =:= sslsocket,
                        is_pid(element(4, Socket)) -> element(4, Socket);
controller(_) -> undefined.

%% ---- why a handshake failed ---------------------------------------------------------------------

%% The reason and the detail of what ssl:handshake/3 or ssl:connect/3 answered. verify_fun has told
%% already of what it refused itself.
-spec failure(term()) -> {Reason :: atom(), Detail :: binary() | undefined}.
failure({tls_alert, {Alert, Text}}) ->
    Said = unicode:characters_to_list(Text),
    %% ssl_alert:alert_txt/1: `… received CLIENT ALERT: Fatal - …`, or `… generated SERVER ALERT: …`.
    case is_list(Said) andalso lists:any(fun(Whose) -> string:find(Said, Whose) =/= nomatch end,
                                         [" received CLIENT ALERT: ", " received SERVER ALERT: "]) of
        true -> {refused_by_peer, distsec_report:text(Alert)};
        false -> {of_alert(Alert), distsec_report:text(Alert)}
    end;
failure(closed) -> {closed, undefined};
failure(timeout) -> {handshake_timeout, undefined};
failure({options, _} = Why) -> {handshake_failed, distsec_report:text(Why)};
failure(Posix) when is_atom(Posix) -> {closed, distsec_report:text(Posix)};
failure(Why) -> {handshake_failed, distsec_report:text(Why)}.

of_alert(certificate_required) -> certificate_required;
of_alert(protocol_version) -> protocol_version;
of_alert(unknown_ca) -> unknown_ca;
of_alert(certificate_expired) -> expired;
of_alert(certificate_revoked) -> revoked;
of_alert(Alert) when Alert =:= unexpected_message; Alert =:= bad_record_mac; Alert =:= record_overflow;
                     Alert =:= decode_error; Alert =:= illegal_parameter; Alert =:= decrypt_error;
                     Alert =:= missing_extension -> malformed;
of_alert(Alert) when Alert =:= bad_certificate; Alert =:= unsupported_certificate;
                     Alert =:= certificate_unknown -> certificate_invalid;
of_alert(_) -> handshake_failed.
