%% What the orchestrator may have a node do, and nothing else. Runs in a process of the agent's.
-module(distsec_command).

-export([run/2]).

-define(DOWN_MS, 4000).

-spec run(atom(), map()) -> {ok | error, map()}.
run(policy, #{document := Document} = Arguments) when is_binary(Document) ->
    case distsec_policy:parse(Document, distsec_guard:policy_key()) of
        {ok, Policy} ->
            apply_policy(Policy, Document, maps:get(cookies, Arguments, #{}));
        {error, Reason} ->
            rejected(Reason)
    end;
run(cookies, Arguments) ->
    distsec_turn:take(fun() -> distsec_cookies:set(Arguments) end);
run(reload, _) ->
    reload(distsec_tls:own());
run(renew, #{peers := Peers}) when is_map(Peers) ->
    {Done, Failed} = distsec_renewal:prove(maps:keys(Peers)),
    {ok, #{renewed => [Outcome#{peer => Peer} || {Peer, Outcome} <- Done],
           failed => [#{peer => Peer, reason => Reason} || {Peer, Reason} <- Failed]}};
run(disconnect, #{peer := Peer}) when is_binary(Peer) ->
    case distsec_watch:disconnect(Peer, ?DOWN_MS) of
        still_up -> {error, #{reason => links_remain, detail => Peer}};
        Done -> {ok, #{detail => distsec_report:text(Done)}}
    end;
run(admit_shell, #{name := Name, identity := Identity, seconds := Seconds})
  when is_binary(Name), is_binary(Identity), is_integer(Seconds), Seconds > 0 ->
    case distsec_shells:admit(Name, Identity, Seconds) of
        ok -> {ok, #{}};
        {error, Why} -> {error, #{reason => busy, detail => distsec_report:text(Why)}}
    end;
run(end_shell, #{name := Name}) when is_binary(Name) ->
    ok = distsec_shells:ended(Name),
    run(disconnect, #{peer => Name});
run(admit_tool, #{identity := Identity, pattern := Pattern, seconds := Seconds})
  when is_binary(Identity), is_binary(Pattern), is_integer(Seconds), Seconds > 0 ->
    case distsec_tools:admit(Identity, Pattern, Seconds) of
        ok -> {ok, #{}};
        {error, Why} -> {error, #{reason => busy, detail => distsec_report:text(Why)}}
    end;
run(end_tool, #{identity := Identity}) when is_binary(Identity) ->
    ok = distsec_tools:ended(Identity),
    case distsec_watch:enforce(?DOWN_MS) of
        [] -> {ok, #{}};
        Left -> {error, #{reason => links_remain, detail => distsec_report:text(iolist_to_binary(lists:join($\s, Left)))}}
    end;
run(status, _) ->
    {ok, distsec_snapshot:take()};
run(document, _) ->
    case distsec_policy:document() of
        undefined -> {error, #{reason => unknown}};
        Document -> {ok, #{document => Document}}
    end;
run(stop, _) ->
    {ok, #{}};
run(_, _) ->
    {error, #{reason => unknown}}.

%% The stock carrier reads the files itself, through a cache of its own (ssl_pem_cache: 120 s) that has no
%% documented way to be cleared for the distribution.
reload(undefined) ->
    case distsec_tls:read() of
        {ok, #{served := Served}} ->
            _ = gen_server:call(ssl_pem_cache_dist, {unconditionally_clear_pem_cache, self()}),
            {ok, Served};
        {error, Text} -> not_taken(Text)
    end;
reload(_) ->
    case too_early(distsec_tls:read()) orelse distsec_tls:load() of
        true -> not_taken("the certificate is not yet valid by the clock of this node");
        ok -> {ok, maps:with([serial, not_after, trusted], distsec_tls:own())};
        {error, Text} -> not_taken(Text)
    end.

%% Issued by a clock that is ahead: nobody whose clock is right would take it, and what is in use still is.
too_early({ok, #{served := #{not_before := NotBefore}}}) -> os:system_time(second) < NotBefore;
too_early({error, _}) -> false.

not_taken(Text) ->
    {error, #{reason => certificate_rejected, detail => distsec_report:text(unicode:characters_to_binary(Text))}}.

%% An agent that ended may have left its process here, as slow as it likes, with an older policy than the
%% next agent's: what is checked is done in the same turn.
apply_policy(#{generation := Generation} = Policy, Document, Cookies) ->
    Digest = distsec_policy:digest(Document),
    case distsec_turn:take(fun() -> take(Policy, Document, Digest, Cookies) end) of
        ok -> carry_out(Generation, Digest);
        {rejected, Reason} -> rejected(Reason)
    end.

%% The order matters. The policy comes first, so that no new handshake passes; then the cookies,
%% so that a handshake which passed already fails at its challenge; then what is pending or up is
%% ended, and nodedown awaited; then the mark, so that no older policy is ever taken again; and only
%% then is anybody told that it is done.
take(Policy, Document, Digest, Cookies) ->
    case may_take(Policy, Digest) of
        ok ->
            Before = distsec_policy:in_force(),
            ok = distsec_policy:put_in_force(Policy, Digest, Document),
            ok = distsec_cookies:use(Cookies),
            %% Whom the new policy no longer admits holds a cookie that was good.
            distsec_cookies:spoil(admitted(Before) -- admitted(Policy));
        Rejected ->
            Rejected
    end.

may_take(#{cluster := Cluster, generation := Generation}, Digest) ->
    #{policy_generation := Current, policy_digest := InForce} = distsec_policy:summary(),
    case maps:get(cluster, distsec_guard:guard()) of
        Cluster when Digest =:= InForce -> ok;
        Cluster when Generation > Current ->
            case Generation >= distsec_guard:floor() of
                true -> ok;
                false -> {rejected, rollback}
            end;
        Cluster -> {rejected, generation};
        _ -> {rejected, cluster}
    end.

carry_out(Generation, Digest) ->
    Left = distsec_watch:enforce(?DOWN_MS),
    Marked = distsec_turn:take(fun() -> distsec_mark:raise(distsec_guard:directory(), Generation) end),
    distsec_connect:refresh(),
    distsec_report:critical(policy_applied, #{generation => Generation, digest => Digest}),
    case {Left, Marked} of
        {[], ok} -> {ok, #{generation => Generation, digest => Digest}};
        {[], {error, Why}} -> {error, #{reason => not_persisted,
                                        detail => distsec_report:text(Why)}};
        _ -> {error, #{reason => links_remain,
                       detail => distsec_report:text(iolist_to_binary(lists:join($\s, Left)))}}
    end.

rejected(Reason) ->
    distsec_report:critical(policy_rejected, #{reason => Reason}),
    {error, #{reason => Reason}}.

admitted(Policy) ->
    [Name || #{name := Name} <- distsec_policy:open(Policy)].
