%% The decision about a peer: one pure function, asked at every gate of every link.
%%
%% distsec.core.admission is its twin in the orchestrator, and says more about the order of things;
%% tests/vectors/ holds both to the same answers.
-module(distsec_admission).

-export([decide/2, glob_matches/2, safe_name/1]).

-define(MAX_NAME_BYTES, 255).

%% The order is the order of certainty: is there a policy at all, is this certificate still one,
%% is the name refused, and only then: is it on a list. A name that is undefined is not known yet
%% (TLS handshake, before the first distribution frame).
-spec decide(distsec_policy:claim(), distsec_policy:policy() | undefined) ->
          distsec_policy:decision().
decide(_Claim, undefined) ->
    {deny, no_policy, undefined};
decide(_Claim, #{peers := [], rules := []}) ->
    {deny, no_policy, undefined};
decide(Claim, #{require_identity := true} = Policy) ->
    Shown = shown(Claim, Policy),
    case check_certificate(Claim, Shown, Policy) of
        ok -> check_name(Claim, Shown, Policy);
        Reason -> {deny, Reason, undefined}
    end;
decide(Claim, Policy) ->
    check_name(Claim, any, Policy).

%% What a certificate may be on a list by. A SPIFFE ID of this cluster is all that its holder is;
%% where there is none, the subject and the DNS names count as well.
shown(#{identities := Identities} = Claim, #{cluster := Cluster}) ->
    Own = <<"spiffe://", Cluster/binary, "/">>,
    Uris = [Uri || Uri <- Identities, not distsec_identity:is_certificate_name(Uri)],
    case lists:any(fun(Uri) -> starts_with(Uri, Own) end, Uris) of
        true -> Uris;
        false -> Uris ++ [Name || Name <- maps:get(names, Claim, []),
                                  distsec_identity:is_certificate_name(Name)]
    end.

check_certificate(#{not_after := NotAfter, serial := Serial, now := Now} = Claim, Shown,
                  #{issued_at := IssuedAt, revoked := Revoked} = Policy) ->
    case one_identity(Claim, Shown, Policy) of
        false ->
            no_identity;
        true ->
            %% A clock that was set back revives nothing: time is at least that of the policy.
            case is_integer(NotAfter) andalso max(Now, IssuedAt) > NotAfter of
                true -> expired;
                false ->
                    case lists:member(Serial, Revoked) of
                        true -> revoked;
                        false -> identity(Shown, Policy)
                    end
            end
    end.

%% An identity that is revoked does not come back with a certificate that nobody has seen yet.
identity(Shown, Policy) ->
    case lists:any(fun(I) -> lists:member(I, distsec_policy:revoked_identities(Policy)) end,
                   Shown) of
        true -> revoked;
        false -> ok
    end.

%% One that names two listed nodes is neither: who got it issued with another's subject beside its
%% own gains nothing, and loses what it had.
one_identity(#{identities := [_, _ | _]}, _, _) ->
    false;
one_identity(#{identities := Identities}, Shown, #{peers := Peers, rules := Rules}) ->
    case lists:usort([I || #{identity := I} <- Peers, lists:member(I, Shown)]) of
        [_, _ | _] -> false;
        [_] -> true;
        [] -> Identities =/= [] orelse lists:any(fun(Rule) -> owns(Rule, Shown) end, Rules)
    end.

check_name(#{name := undefined}, any, _Policy) ->
    {allow, undefined};
check_name(#{name := undefined} = Claim, Shown, #{peers := Peers, rules := Rules} = Policy) ->
    case [Peer || #{identity := I} = Peer <- Peers, lists:member(I, Shown)] of
        [] -> by_rule(Claim, Shown, [R || R <- Rules, owns(R, Shown)], not_allowed);
        Own -> any_open(Claim, Shown, Own, Policy)
    end;
check_name(#{name := Name} = Claim, Shown, #{denied := Denied} = Policy) ->
    case {safe_name(Name), lists:member(Name, Denied)} of
        {false, _} -> {deny, unsafe_name, undefined};
        {true, true} -> {deny, denied, listed(Name, Policy)};
        {true, false} -> by_name(Name, Claim, Shown, Policy)
    end.

by_name(Name, Claim, Shown, #{peers := Peers, rules := Rules} = Policy) ->
    case distsec_policy:peer(Name, Policy) of
        {ok, Peer} ->
            case itself_denied(Claim, Policy) of
                true -> {deny, denied, Name};
                false -> exactly(Peer, Claim, Shown)
            end;
        error ->
            case [R || #{pattern := P} = R <- Rules, glob_matches(P, Name)] of
                [] -> {deny, unlisted(Shown, Peers), undefined};
                Matching -> by_rule(Claim, Shown, [R || R <- Matching, owns(R, Shown)],
                                    name_not_in_certificate)
            end
    end.

exactly(#{name := Name, identity := I, phase := Phase}, Claim, Shown) ->
    case {Shown =:= any orelse lists:member(I, Shown), node_usage(Claim, Shown), Phase} of
        {false, _, _} -> {deny, name_not_in_certificate, Name};
        {true, false, _} -> {deny, key_usage, Name};
        {true, true, prepared} -> {deny, not_open, Name};
        {true, true, open} -> {allow, Name}
    end.

%% A denied node is out of the mesh from its own side too: who has not heard of the denial yet and
%% dials it would be let in once more. Rules are not touched: an operator's tool may look at it.
itself_denied(Claim, #{denied := Denied}) ->
    lists:member(maps:get(node, Claim, undefined), Denied).

any_open(Claim, Shown, Own, #{denied := Denied} = Policy) ->
    case [Peer || #{name := Name} = Peer <- Own, not lists:member(Name, Denied),
                  not itself_denied(Claim, Policy)] of
        [] -> {deny, denied, maps:get(name, hd(Own))};
        [#{name := First} | _] = Left ->
            case {node_usage(Claim, Shown), [Name || #{name := Name, phase := open} <- Left]} of
                {false, _} -> {deny, key_usage, First};
                {true, [Open | _]} -> {allow, Open};
                {true, []} -> {deny, not_open, First}
            end
    end.

%% The first of Rules that is for this node speaks.
by_rule(_, _, [], Otherwise) ->
    {deny, Otherwise, undefined};
by_rule(Claim, Shown, [#{pattern := First} | _] = Rules, _) ->
    case [Rule || Rule <- Rules, is_for(Claim, Rule)] of
        [] -> {deny, not_allowed, First};
        [#{pattern := Pattern} = Rule | _] ->
            case against(Claim, Shown, Rule) of
                ok -> {allow, Pattern};
                Reason -> {deny, Reason, Pattern}
            end
    end.

%% What a CLI rule wants besides the name and the identity.
against(#{direction := out}, _, _) ->
    not_inbound;
against(Claim, Shown, Rule) ->
    Live = maps:get(live, Claim, undefined),
    case {usage(client, Claim, Shown), Claim} of
        {false, _} -> key_usage;
        {true, #{hidden := false}} -> not_hidden;
        {true, _} ->
            case is_integer(Live) andalso Live >= distsec_policy:max_live(Rule) of
                true -> too_many_names;
                false -> ok
            end
    end.

%% A node is dialled and dials; a command-line tool dials.
node_usage(Claim, Shown) ->
    usage(client, Claim, Shown) andalso usage(server, Claim, Shown).

usage(_, _, any) -> true;
usage(Role, Claim, _) ->
    case maps:get(usages, Claim, undefined) of
        undefined -> true;
        Usages -> lists:member(Role, Usages)
    end.

is_for(Claim, Rule) ->
    Nodes = distsec_policy:nodes_of(Rule),
    Nodes =:= [] orelse lists:member(maps:get(node, Claim, undefined), Nodes).

%% A `*` at the end of a rule's URI stands for any rest; a DNS name or a subject is whole.
owns(_Rule, any) ->
    true;
owns(#{identity := Expected}, Shown) ->
    case Expected =/= <<>> andalso binary:last(Expected) =:= $* of
        true ->
            Prefix = binary:part(Expected, 0, byte_size(Expected) - 1),
            lists:any(fun(Uri) -> starts_with(Uri, Prefix)
                                      andalso not distsec_identity:is_certificate_name(Uri)
                      end, Shown);
        false ->
            lists:member(Expected, Shown)
    end.

starts_with(Binary, Prefix) ->
    binary:longest_common_prefix([Prefix, Binary]) =:= byte_size(Prefix).

unlisted(any, _) ->
    not_allowed;
unlisted(Shown, Peers) ->
    case lists:any(fun(#{identity := I}) -> lists:member(I, Shown) end, Peers) of
        true -> name_not_in_certificate;
        false -> not_allowed
    end.

listed(Name, Policy) ->
    case distsec_policy:peer(Name, Policy) of
        {ok, _} -> Name;
        error -> undefined
    end.

%% name@host of visible ASCII, as all names of a policy are: what else a peer sends as its name is
%% compared with nothing.
-spec safe_name(binary()) -> boolean().
safe_name(Name) ->
    byte_size(Name) =< ?MAX_NAME_BYTES
        andalso lists:all(fun(Byte) -> Byte > $\s andalso Byte < 127 end, binary_to_list(Name))
        andalso case binary:split(Name, <<"@">>, [global]) of
                    [Head, Host] -> Head =/= <<>> andalso Host =/= <<>>;
                    _ -> false
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
