%% The policy: its signed document (parse/2), and the copy in force in this node (a persistent
%% term, so that every gate reads it without asking a process). distsec_admission decides by it. No
%% policy, an empty or a broken one admits nobody. docs/state-files.md has the format.
-module(distsec_policy).

-export([parse/2, decide/2, digest/1]).
-export([in_force/0, put_in_force/2, put_in_force/3, document/0, summary/0]).
-export([peer/2, peers/1, open/1, address/1, lists/1, max_live/1, nodes_of/1]).
-export([revoked_identities/1]).

-export_type([policy/0, peer/0, rule/0, claim/0, decision/0]).

-type policy() :: #{cluster := binary(), generation := non_neg_integer(),
                    issued_at := integer(), connect := mesh | none,
                    require_identity := boolean(), peers := [peer()], rules := [rule()],
                    denied := [binary()], revoked := [binary()],
                    revoked_identities => [binary()], atom() => term()}.
-type peer() :: #{name := binary(), identity := binary(), phase := open | prepared,
                  address := binary() | undefined, port := inet:port_number() | undefined}.
%% `max_live`: names that one certificate may have up at a time; `nodes`: those that the rule is for
%% (absent or []: all of them).
-type rule() :: #{pattern := binary(), identity := binary(), max_live => pos_integer(),
                  nodes => [binary()]}.
%% What is absent or undefined is not known at this gate. `names`, `usages`: of
%% distsec_identity:of_certificate/1; `live`: other names of the same certificate that a rule let in
%% and that are up; `node`: the name of the node that decides.
-type claim() :: #{direction := in | out, identities := [binary()], names => [binary()],
                   usages => [client | server] | undefined,
                   serial := binary() | undefined, not_after := integer() | undefined,
                   name := binary() | undefined, hidden := boolean() | undefined,
                   live => non_neg_integer() | undefined, node => binary() | undefined,
                   now := integer()}.
-type decision() :: {allow, Rule :: binary() | undefined}
                  | {deny, Reason :: atom(), Rule :: binary() | undefined}.
-type error() :: signature | malformed.

-define(MAX_DOCUMENT_BYTES, 1048576).
-define(MAX_LIVE, 8). % distsec.model.policy.DEFAULT_MAX_LIVE
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
            Rest = binary:part(Document, At + Length, byte_size(Document) - At - Length),
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

valid(#{version := Version, cluster := Cluster, generation := Generation, issued_at := IssuedAt,
        connect := Connect, require_identity := Require, peers := Peers, rules := Rules,
        denied := Denied, revoked := Revoked} = Policy) ->
    lists:member(Version, [1, 2]) andalso is_binary(Cluster)
        andalso is_integer(Generation) andalso Generation >= 0
        andalso is_integer(IssuedAt) andalso lists:member(Connect, [mesh, none])
        andalso is_boolean(Require)
        andalso lists:all(fun valid_peer/1, Peers) andalso lists:all(fun valid_rule/1, Rules)
        andalso lists:all(fun is_binary/1, Denied) andalso lists:all(fun is_binary/1, Revoked)
        andalso lists:all(fun is_binary/1, revoked_identities(Policy));
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

valid_rule(#{pattern := Pattern, identity := Identity} = Rule) ->
    Live = max_live(Rule),
    is_binary(Pattern) andalso is_binary(Identity) andalso is_integer(Live) andalso Live > 0
        andalso lists:all(fun is_binary/1, nodes_of(Rule));
valid_rule(_) ->
    false.

%% How many names of one certificate a rule lets in at a time.
-spec max_live(rule()) -> pos_integer().
max_live(Rule) ->
    maps:get(max_live, Rule, ?MAX_LIVE).

%% The nodes that a rule is for; [] are all.
-spec nodes_of(rule()) -> [binary()].
nodes_of(Rule) ->
    maps:get(nodes, Rule, []).

%% Identities that are refused with whatever certificate they come; absent: none.
-spec revoked_identities(policy()) -> [binary()].
revoked_identities(Policy) ->
    maps:get(revoked_identities, Policy, []).

%% SHA-256 of a document's bytes, lower-case hex.
-spec digest(binary()) -> binary().
digest(Document) ->
    distsec_identity:hex(crypto:hash(sha256, Document)).

%% ---- the decision -----------------------------------------------------------------------------

%% Whether a peer is admitted; see distsec_admission.
-spec decide(claim(), policy() | undefined) -> decision().
decide(Claim, Policy) ->
    distsec_admission:decide(Claim, Policy).

%% The entry of exactly that name.
-spec peer(binary(), policy() | undefined) -> {ok, peer()} | error.
peer(Name, #{peers := Peers}) ->
    case [Peer || #{name := N} = Peer <- Peers, N =:= Name] of
        [Peer | _] -> {ok, Peer};
        [] -> error
    end;
peer(_, undefined) ->
    error.

%% Those whom a node may dial: open, with an address.
-spec peers(policy() | undefined) -> [peer()].
peers(undefined) ->
    [];
peers(Policy) ->
    [Peer || #{address := Address} = Peer <- open(Policy), Address =/= undefined].

%% Those who are let in: neither prepared nor denied, and their identity not revoked.
-spec open(policy() | undefined) -> [peer()].
open(undefined) ->
    [];
open(#{peers := Peers, denied := Denied} = Policy) ->
    Revoked = revoked_identities(Policy),
    [Peer || #{name := Name, identity := Identity, phase := open} = Peer <- Peers,
             not lists:member(Name, Denied), not lists:member(Identity, Revoked)].

%% Where a name is dialled, by the policy in force; `error` for one that is not listed, not open,
%% denied, or without an address.
-spec address(binary()) -> {ok, {inet:ip_address(), inet:port_number()}} | error.
address(Name) ->
    case [Peer || #{name := N} = Peer <- peers(in_force()), N =:= Name] of
        [#{address := Address, port := Port} | _] ->
            case inet:parse_strict_address(binary_to_list(Address)) of
                {ok, Ip} -> {ok, {Ip, Port}};
                {error, _} -> error
            end;
        [] -> error
    end.

%% Whether the policy in force lists that name, exactly or by a pattern, and does not deny it.
-spec lists(binary()) -> boolean().
lists(Name) ->
    case in_force() of
        #{denied := Denied, rules := Rules} = Policy ->
            not lists:member(Name, Denied)
                andalso (peer(Name, Policy) =/= error
                         orelse lists:any(fun(#{pattern := Pattern}) ->
                                                  distsec_admission:glob_matches(Pattern, Name)
                                          end, Rules));
        undefined ->
            false
    end.

%% ---- what is in force -------------------------------------------------------------------------

-spec in_force() -> policy() | undefined.
in_force() ->
    case persistent_term:get(?KEY, undefined) of
        #{policy := Policy} -> with_announced(distsec_shells:rules() ++ distsec_tools:rules(), Policy);
        undefined -> undefined
    end.

with_announced([], Policy) -> Policy;
with_announced(Announced, #{rules := Rules} = Policy) -> Policy#{rules := Announced ++ Rules}.

%% Only distsec_guard (at boot) and distsec_command (a verified push) call this.
-spec put_in_force(policy(), Digest :: binary()) -> ok.
put_in_force(Policy, Digest) ->
    put_in_force(Policy, Digest, undefined).

%% With the signed Document that the policy is from, which is kept as the proof of it.
-spec put_in_force(policy(), Digest :: binary(), Document :: binary() | undefined) -> ok.
put_in_force(Policy, Digest, Document) ->
    persistent_term:put(?KEY, #{policy => Policy, digest => Digest, document => Document}).

%% What was signed of the policy in force: an orchestrator whose own record is older than that (it
%% was restored from a backup, say) learns from it what it has forgotten.
-spec document() -> binary() | undefined.
document() ->
    maps:get(document, persistent_term:get(?KEY, #{}), undefined).

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
