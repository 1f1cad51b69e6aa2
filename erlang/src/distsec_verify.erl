%% The verify_fun of the optfile, `{fun distsec_verify:verify/3, #{role => server | client}}`: the
%% policy's answer inside the TLS handshake, in both directions, at every reconnect. It runs in
%% the TLS connection process, which owns the socket, so the peer's address is at hand.
%%
%% It does not know the name that the peer will claim: with the stock carrier any allowed
%% certificate may claim any name for which it has the cookie (docs/security-model.md).
-module(distsec_verify).

-include_lib("public_key/include/public_key.hrl").

-export([verify/3, session/1, peer_of_self/0, reported/0]).

-define(REPORTED, '$distsec_reported').

%% With the stock carrier State is what the optfile says, the role. The carrier adds `attempt`, the number
%% of the attempt in distsec_attempts: it has the address and, where we dialled, the name; or `selfcheck`,
%% a process that is told whom the other side is and decides itself (distsec_selfcheck).
-type state() :: #{role := server | client, attempt => distsec_attempts:id(), selfcheck => pid()}.

%% Called by public_key:pkix_path_validation/3. {fail, _} ends the handshake with an alert
%% (the `{failure, _}` of some documentation does nothing).
-spec verify(#'OTPCertificate'{}, term(), state()) ->
          {valid, map()} | {unknown, map()} | {fail, term()}.
verify(Certificate, {bad_cert, Bad}, State) ->
    Identity = distsec_identity:of_certificate(Certificate),
    refuse(State, bad_certificate(Bad, Identity), Identity, #{detail => distsec_report:text(Bad)});
verify(_Certificate, {extension, _}, State) ->
    {unknown, State};
verify(_Certificate, valid, State) ->
    {valid, State};
verify(Certificate, valid_peer, #{role := Role} = State) ->
    Identity = distsec_identity:of_certificate(Certificate),
    case distsec_identity:usage_fits(Certificate, peer_role(Role)) of
        true -> by_policy(State, Identity);
        false -> refuse(State, key_usage, Identity, #{})
    end.

by_policy(#{selfcheck := Checker, role := Role} = State, Identity) ->
    Checker ! {distsec_selfcheck, Role, Identity},
    {valid, State};
by_policy(#{attempt := Id} = State, Identity) ->
    distsec_attempts:learn(Id, session(Identity)),
    case distsec_attempts:facts(Id) of
        undefined ->
            {fail, {distsec, closed}};
        Facts ->
            case distsec_gate:decide(Id, Facts) of
                {allow, Rule} ->
                    distsec_attempts:learn(Id, #{rule => Rule}),
                    distsec_attempts:stage(Id, admitted),
                    {valid, State};
                {deny, Reason, Rule} ->
                    refuse(State, Reason, Identity, #{rule => Rule})
            end
    end;
by_policy(#{role := Role} = State,
          #{serial := Serial, not_after := NotAfter, identities := Identities} = Identity) ->
    Started = erlang:monotonic_time(),
    Decision = distsec_policy:decide(#{direction => direction(Role), identities => Identities,
                                       names => maps:get(names, Identity),
                                       usages => maps:get(usages, Identity),
                                       node => distsec_guard:node_name(),
                                       serial => Serial, not_after => NotAfter,
                                       name => undefined, hidden => undefined,
                                       now => distsec_clock:now()},
                                     distsec_policy:in_force()),
    distsec_count:check(action(Role), element(1, Decision), erlang:monotonic_time() - Started),
    case Decision of
        {allow, Rule} ->
            distsec_links:remember(peer_of_self(), direction(Role),
                                   (session(Identity))#{rule => Rule}),
            {valid, State};
        {deny, Reason, Rule} ->
            refuse(State, Reason, Identity, #{rule => Rule})
    end.

%% What an attempt or a link knows of its peer's certificate; `identity` is the one that is shown.
-spec session(distsec_identity:identity()) -> map().
session(Identity) ->
    (maps:with([identities, names, usages, serial, issuer, not_after], Identity))
        #{identity => distsec_identity:shown(Identity)}.

refuse(#{selfcheck := _}, Reason, _, _) ->
    {fail, {distsec, Reason}};
refuse(#{attempt := Id}, Reason, Identity, Fields) ->
    distsec_attempts:learn(Id, session(Identity)),
    distsec_attempts:refuse(Id, Reason, Fields),
    {fail, {distsec, Reason}};
refuse(#{role := Role}, Reason, #{serial := Serial} = Identity, Fields) ->
    %% The alert that TLS logs for this is the same refusal: distsec_handler passes it over.
    put(?REPORTED, true),
    distsec_report:refusal(direction(Role), Reason,
                           Fields#{address => distsec_report:address(peer_of_self()),
                                   identity => distsec_identity:shown(Identity),
                                   serial => Serial}),
    {fail, {distsec, Reason}}.

%% Whether this TLS process has reported why it fails.
-spec reported() -> boolean().
reported() ->
    get(?REPORTED) =:= true.

bad_certificate(cert_expired, #{not_before := NotBefore}) ->
    case os:system_time(second) < NotBefore of % by the wall clock, as public_key judges it
        true -> not_yet_valid;
        false -> expired
    end;
bad_certificate(Bad, _) when Bad =:= unknown_ca; Bad =:= selfsigned_peer; Bad =:= invalid_issuer ->
    unknown_ca;
bad_certificate({revoked, _}, _) -> revoked;
bad_certificate(invalid_key_usage, _) -> key_usage;
bad_certificate(invalid_ext_key_usage, _) -> key_usage;
bad_certificate({invalid_ext_keyusage, _}, _) -> key_usage; % ssl_certificate.erl, 27 and newer
bad_certificate(_, _) -> certificate_invalid.

direction(server) -> in;
direction(client) -> out.

action(server) -> handshake_in;
action(client) -> handshake_out.

peer_role(server) -> client;
peer_role(client) -> server.

%% The other end of the socket that this TLS process owns.
-spec peer_of_self() -> {inet:ip_address(), inet:port_number()} | undefined.
peer_of_self() ->
    {links, Links} = process_info(self(), links),
    case [Peer || Port <- Links, is_port(Port), {ok, Peer} <- [inet:peername(Port)]] of
        [{_, _} = Peer | _] -> Peer;
        _ -> undefined
    end.
