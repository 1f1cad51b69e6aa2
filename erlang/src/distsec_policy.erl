%% The policy: its signed document (parse/2), the one decision about a peer (decide/2, pure),
%% and the copy in force in this node (a persistent term, so that every gate reads it without
%% asking a process). No policy, an empty or a broken one admits nobody.
%%
%% docs/state-files.md has the format; tests/vectors/ holds decide/2 and distsec.core.admission
%% to the same answers.
-module(distsec_policy).

-export([parse/2, decide/2, digest/1]).
-export([in_force/0, put_in_force/2, summary/0]).
-export([peer/2, peers/1, lists/1, glob_matches/2]).

-export_type([policy/0, claim/0, decision/0]).

-type policy() :: #{cluster := binary(), generation := non_neg_integer(),
                    issued_at := integer(), connect := mesh | none,
                    require_identity := boolean(), peers := [peer()], rules := [rule()],
                    denied := [binary()], revoked := [binary()], atom() => term()}.
-type peer() :: #{name := binary(), identity := binary(), phase := open | prepared,
                  address := binary() | undefined, port := inet:port_number() | undefined}.
-type rule() :: #{pattern := binary(), identity := binary()}.
-type claim() :: #{direction := in | out, identities := [binary()],
                   serial := binary() | undefined, not_after := integer() | undefined,
                   name := binary() | undefined, hidden := boolean() | undefined,
                   now := integer()}.
-type decision() :: {allow, Rule :: binary() | undefined}
                  | {deny, Reason :: atom(), Rule :: binary() | undefined}.
-type error() :: signature | malformed.

-define(MAX_DOCUMENT_BYTES, 1048576).
-define(KEY, {distsec, policy}).

%% ---- the document -----------------------------------------------------------------------------

%% The policy in Document if PublicKey (32 raw bytes, Ed25519) signed it. The signature is
%% verified before a byte of the text is scanned: the scanner makes atoms.
-spec parse(binary(), binary()) -> {ok, policy()} | {error, error()}.
parse(Document, PublicKey) when byte_size(Document) =< ?MAX_DOCUMENT_BYTES ->
    case split(Document) of
        {ok, Body, Signature} ->
            case crypto:verify(eddsa, none, Body, Signature, [PublicKey, ed25519]) of
                true -> parse_body(Body);
                false -> {error, signature}
            end;
        error ->
            {error, signature}
    end;
parse(_, _) ->
    {error, malformed}.

%% The signature line is the last one; it covers every byte before it, the newline included.
split(Document) ->
    case binary:matches(Document, <<"\n{signature, <<\"">>) of
        [] ->
            error;
        Matches ->
            {At, Length} = lists:last(Matches),
            %% No sized binary segments in patterns here or elsewhere: what OTP 25 compiles them to,
            %% OTP 29 does not load.
            Body = binary:part(Document, 0, At + 1),
            Rest = after_bytes(At + Length, Document),
            case binary:split(Rest, <<"\">>}.">>) of
                [Base64, Tail] when byte_size(Base64) =< 128, Tail =:= <<"\n">>; Tail =:= <<>> ->
                    try {ok, Body, base64:decode(Base64)} catch _:_ -> error end;
                _ ->
                    error
            end
    end.

parse_body(Body) ->
    try
        {ok, Tokens, _} = erl_scan:string(binary_to_list(Body)),
        {ok, {distsec_policy, Map}} = erl_parse:parse_term(Tokens),
        true = valid(Map),
        {ok, Map}
    catch
        _:_ -> {error, malformed}
    end.

valid(#{version := 1, cluster := Cluster, generation := Generation, issued_at := IssuedAt,
        connect := Connect, require_identity := Require, peers := Peers, rules := Rules,
        denied := Denied, revoked := Revoked}) ->
    is_binary(Cluster) andalso is_integer(Generation) andalso Generation >= 0
        andalso is_integer(IssuedAt) andalso lists:member(Connect, [mesh, none])
        andalso is_boolean(Require)
        andalso lists:all(fun valid_peer/1, Peers) andalso lists:all(fun valid_rule/1, Rules)
        andalso lists:all(fun is_binary/1, Denied) andalso lists:all(fun is_binary/1, Revoked);
valid(_) ->
    false.

valid_peer(#{name := Name, identity := Identity, phase := Phase, address := Address,
             port := Port}) ->
    is_binary(Name) andalso is_binary(Identity) andalso lists:member(Phase, [open, prepared])
        andalso ((Address =:= undefined andalso Port =:= undefined)
                 orelse (is_binary(Address) andalso is_integer(Port)
                         andalso Port > 0 andalso Port < 65536));
valid_peer(_) ->
    false.

valid_rule(#{pattern := Pattern, identity := Identity}) ->
    is_binary(Pattern) andalso is_binary(Identity);
valid_rule(_) ->
    false.

%% SHA-256 of a document's bytes, lower-case hex.
-spec digest(binary()) -> binary().
digest(Document) ->
    distsec_identity:hex(crypto:hash(sha256, Document)).

%% ---- the decision -----------------------------------------------------------------------------

%% The order is the order of certainty: is there a policy at all, is this certificate still one,
%% is the name refused, and only then: is it on a list. A name that is undefined is not known yet
%% (TLS handshake, before the first distribution frame).
-spec decide(claim(), policy() | undefined) -> decision().
decide(_Claim, undefined) ->
    {deny, no_policy, undefined};
decide(_Claim, #{peers := [], rules := []}) ->
    {deny, no_policy, undefined};
decide(Claim, #{require_identity := true} = Policy) ->
    case Claim of
        #{identities := [Identity]} -> check_certificate(Claim, Identity, Policy);
        _ -> {deny, no_identity, undefined}
    end;
decide(Claim, Policy) ->
    check_name(Claim, any, Policy).

check_certificate(#{not_after := NotAfter, serial := Serial, now := Now} = Claim, Identity,
                  #{issued_at := IssuedAt, revoked := Revoked} = Policy) ->
    %% A clock that was set back revives nothing: time is at least that of the policy.
    case is_integer(NotAfter) andalso max(Now, IssuedAt) > NotAfter of
        true -> {deny, expired, undefined};
        false ->
            case lists:member(Serial, Revoked) of
                true -> {deny, revoked, undefined};
                false -> check_name(Claim, Identity, Policy)
            end
    end.

check_name(#{name := undefined}, any, _Policy) ->
    {allow, undefined};
check_name(#{name := undefined} = Claim, Identity, #{peers := Peers, rules := Rules} = Policy) ->
    case [Peer || #{identity := I} = Peer <- Peers, I =:= Identity] of
        [] -> by_rule(Claim, [R || R <- Rules, owns(R, Identity)], not_allowed);
        Own -> any_open(Own, Policy)
    end;
check_name(#{name := Name} = Claim, Identity,
           #{peers := Peers, rules := Rules, denied := Denied} = Policy) ->
    case lists:member(Name, Denied) of
        true -> {deny, denied, listed(Name, Policy)};
        false ->
            case peer(Name, Policy) of
                {ok, Peer} -> exactly(Peer, Identity);
                error ->
                    case [R || #{pattern := P} = R <- Rules, glob_matches(P, Name)] of
                        [] -> {deny, unlisted(Identity, Peers), undefined};
                        Matching ->
                            by_rule(Claim, [R || R <- Matching, owns(R, Identity)],
                                    name_not_in_certificate)
                    end
            end
    end.

exactly(#{name := Name, identity := I}, Identity) when Identity =/= any, I =/= Identity ->
    {deny, name_not_in_certificate, Name};
exactly(#{name := Name, phase := prepared}, _) ->
    {deny, not_open, Name};
exactly(#{name := Name}, _) ->
    {allow, Name}.

any_open(Own, #{denied := Denied}) ->
    case [Peer || #{name := Name} = Peer <- Own, not lists:member(Name, Denied)] of
        [] -> {deny, denied, maps:get(name, hd(Own))};
        Left ->
            case [Name || #{name := Name, phase := open} <- Left] of
                [First | _] -> {allow, First};
                [] -> {deny, not_open, maps:get(name, hd(Left))}
            end
    end.

by_rule(_Claim, [], Otherwise) ->
    {deny, Otherwise, undefined};
by_rule(#{direction := out}, [#{pattern := Pattern} | _], _) ->
    {deny, not_inbound, Pattern};
by_rule(#{hidden := false}, [#{pattern := Pattern} | _], _) ->
    {deny, not_hidden, Pattern};
by_rule(_Claim, [#{pattern := Pattern} | _], _) ->
    {allow, Pattern}.

owns(_Rule, any) ->
    true;
owns(#{identity := Expected}, Identity) ->
    case Expected =/= <<>> andalso binary:last(Expected) of
        $* -> starts_with(Identity, binary:part(Expected, 0, byte_size(Expected) - 1));
        _ -> Expected =:= Identity
    end.

starts_with(Binary, Prefix) ->
    binary:longest_common_prefix([Prefix, Binary]) =:= byte_size(Prefix).

unlisted(any, _) ->
    not_allowed;
unlisted(Identity, Peers) ->
    case [I || #{identity := I} <- Peers, I =:= Identity] of
        [] -> not_allowed;
        _ -> name_not_in_certificate
    end.

listed(Name, Policy) ->
    case peer(Name, Policy) of
        {ok, _} -> Name;
        error -> undefined
    end.

%% The entry of exactly that name.
-spec peer(binary(), policy() | undefined) -> {ok, peer()} | error.
peer(Name, #{peers := Peers}) ->
    case [Peer || #{name := N} = Peer <- Peers, N =:= Name] of
        [Peer | _] -> {ok, Peer};
        [] -> error
    end;
peer(_, undefined) ->
    error.

%% Those whom a node may dial: open, not denied, with an address.
-spec peers(policy() | undefined) -> [peer()].
peers(#{peers := Peers, denied := Denied}) ->
    [Peer || #{name := Name, phase := open, address := Address} = Peer <- Peers,
             Address =/= undefined, not lists:member(Name, Denied)];
peers(undefined) ->
    [].

%% Whether the policy in force lists that name, exactly or by a pattern, and does not deny it.
-spec lists(binary()) -> boolean().
lists(Name) ->
    case in_force() of
        #{denied := Denied, rules := Rules} = Policy ->
            not lists:member(Name, Denied)
                andalso (peer(Name, Policy) =/= error
                         orelse [] =/= [R || #{pattern := P} = R <- Rules, glob_matches(P, Name)]);
        undefined ->
            false
    end.

%% `*` stands for any run of characters before the @; the host is compared exactly.
-spec glob_matches(binary(), binary()) -> boolean().
glob_matches(Pattern, Name) ->
    case {binary:split(Pattern, <<"@">>), binary:split(Name, <<"@">>)} of
        {[Glob, Host], [Head, Host]} when Head =/= <<>>, Host =/= <<>> ->
            binary:match(Host, <<"@">>) =:= nomatch
                andalso pieces(binary:split(Glob, <<"*">>, [global]), Head);
        _ ->
            false
    end.

%% The first piece is anchored at the start, the last at the end, those between are found in
%% order: no backtracking, so a hostile name costs one pass.
pieces([Exact], Head) ->
    Exact =:= Head;
pieces([First | Rest], Head) ->
    starts_with(Head, First) andalso between(Rest, after_bytes(byte_size(First), Head)).

between([Last], Left) ->
    Size = byte_size(Last),
    byte_size(Left) >= Size
        andalso binary:part(Left, byte_size(Left) - Size, Size) =:= Last;
between([<<>> | Rest], Left) ->
    between(Rest, Left);
between([Piece | Rest], Left) ->
    case binary:match(Left, Piece) of
        {At, Length} -> between(Rest, after_bytes(At + Length, Left));
        nomatch -> false
    end.

after_bytes(N, Binary) ->
    binary:part(Binary, N, byte_size(Binary) - N).

%% ---- what is in force -------------------------------------------------------------------------

-spec in_force() -> policy() | undefined.
in_force() ->
    case persistent_term:get(?KEY, undefined) of
        #{policy := Policy} -> Policy;
        undefined -> undefined
    end.

%% Only distsec_guard (at boot) and distsec_agent (a verified push) call this.
-spec put_in_force(policy(), Digest :: binary()) -> ok.
put_in_force(Policy, Digest) ->
    persistent_term:put(?KEY, #{policy => Policy, digest => Digest}).

%% Generation and digest of what is in force, for snapshots and heartbeats.
-spec summary() -> #{policy_generation := non_neg_integer(),
                     policy_digest := binary() | undefined}.
summary() ->
    case persistent_term:get(?KEY, undefined) of
        #{policy := #{generation := Generation}, digest := Digest} ->
            #{policy_generation => Generation, policy_digest => Digest};
        undefined ->
            #{policy_generation => 0, policy_digest => undefined}
    end.
