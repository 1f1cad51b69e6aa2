%% Reads what stock OTP logs of refused handshakes. TLS alerts are logged in the TLS connection
%% process, so the peer's address is there too; dist_util logs a wrong cookie in the handshake's
%% process. A bare scan, and garbage after TLS, stock OTP does not log: nothing is seen of them.
-module(distsec_handler).

-export([install/0, log/2, of_distribution/0]).

-define(ID, distsec).

%% Adds the handler, also again should somebody have removed it; false while logger is not there.
-spec install() -> boolean().
install() ->
    try logger:get_handler_config(?ID) of
        {ok, _} -> true;
        {error, _} -> logger:add_handler(?ID, ?MODULE, #{level => notice}) =:= ok
    catch
        _:_ -> false
    end.

%% Called by logger in the process that logs. A handler that fails is removed by logger, and a
%% node whose refusals nobody sees must not come of a strange report.
-spec log(logger:log_event(), logger:handler_config()) -> ok.
log(#{msg := Message}, _Config) ->
    try
        %% The carrier tells of its refusals itself, each once.
        distsec_snapshot:carrier() =:= <<"distsec">> orelse seen(Message),
        ok
    catch _:_ -> ok
    end.

seen({report, #{alert := Alert, role := Role, alerter := Alerter, statename := State}}) ->
    _ = of_distribution() andalso alert(Alert, Role, Alerter, State),
    ok;
seen({report, #{label := {error_logger, _}, format := Format, args := [Node]}}) ->
    dist_util(Format, Node); % error_logger:error_msg/2
seen({Format, [Reason]}) when is_list(Format) ->
    inet_tls_dist(Format, Reason);
seen(_) ->
    ok.

%% Applications have TLS connections of their own. Those of the distribution are started under
%% ssl_dist_connection_sup (ssl_dist_sup.erl; tls_dist_sup on OTP 25 and later).
-spec of_distribution() -> boolean().
of_distribution() ->
    lists:any(fun(Name) -> is_atom(Name) andalso lists:suffix("dist_sup", atom_to_list(Name))
                               orelse lists:member(Name, [ssl_dist_connection_sup,
                                                          tls_dist_connection_sup,
                                                          tls_dist_server_sup])
              end, ancestors()).

ancestors() ->
    case get('$ancestors') of
        Ancestors when is_list(Ancestors) ->
            [case A of
                 Pid when is_pid(Pid) ->
                     case process_info(Pid, registered_name) of
                         {registered_name, Name} -> Name;
                         _ -> Pid
                     end;
                 Name -> Name
             end || A <- Ancestors];
        _ ->
            []
    end.

%% #alert{level, description, where, role, reason} of ssl_alert.hrl: the description is the
%% number of RFC 8446, section 6.
alert(Alert, Role, Alerter, State) when element(1, Alert) =:= alert ->
    case distsec_verify:reported() orelse State =:= connection andalso Alerter =:= peer
        andalso element(3, Alert) =:= 0 of
        true ->
            ok;
        false ->
            Direction = case Role of server -> in; client -> out end,
            distsec_report:refusal(
              Direction, reason(element(3, Alert), Alerter, element(6, Alert)),
              #{address => distsec_report:address(distsec_verify:peer_of_self()),
                detail => distsec_report:text({Alerter, State, element(3, Alert)})})
    end.

reason(116, _, _) -> certificate_required;
reason(70, _, _) -> protocol_version;
reason(48, _, _) -> unknown_ca;
reason(45, _, _) -> expired;
reason(44, _, _) -> revoked;
reason(_, own, malformed_handshake_data) -> malformed; % tls_gen_connection.erl, as alert 40
reason(N, own, _) when N =:= 10; N =:= 20; N =:= 22; N =:= 47; N =:= 50 -> malformed;
reason(N, _, _) when N >= 41, N =< 46 -> certificate_invalid;
reason(_, _, _) -> handshake_failed.

dist_util("** Connection attempt from node ~w rejected. Invalid challenge reply" ++ _, Node) ->
    bad_cookie(in, Node);
dist_util("** Connection attempt to node ~w cancelled. Invalid challenge ack" ++ _, Node) ->
    bad_cookie(out, Node);
dist_util(_, _) ->
    ok.

%% Whose certificate it was tells the insider from the name that was claimed.
bad_cookie(Direction, Node) ->
    Proven = case distsec_links:own_session() of
                 {ok, Address, Session} ->
                     (maps:with([identity, serial, rule], Session))
                         #{address => distsec_report:address(Address)};
                 error ->
                     #{}
             end,
    distsec_report:refusal(Direction, bad_cookie, Proven#{claimed => distsec_report:text(Node)}).

%% A TLS alert was seen where it was raised; what is left has no alert.
inet_tls_dist("TLS distribution handshake failed: " ++ _, {error, timeout}) ->
    distsec_report:refusal(in, handshake_timeout, #{});
inet_tls_dist("TLS distribution handshake failed: " ++ _, {error, closed}) ->
    distsec_report:refusal(in, closed, #{});
inet_tls_dist(_, _) ->
    ok.
