%% What the node says of itself: the snapshot on each connect, and the heartbeat.
-module(distsec_snapshot).

-export([take/0, heartbeat/0, carrier/0]).

-define(CARRIER, {distsec, carrier}).
-define(MAX_LINKS, 1000).

-spec take() -> map().
take() ->
    #{node := Node, optfile_sha256 := Digest} = distsec_guard:guard(),
    maps:merge(distsec_policy:summary(),
               #{node => Node,
                 os_pid => list_to_integer(os:getpid()),
                 otp => list_to_binary(erlang:system_info(otp_release)),
                 launch => distsec_guard:launch(),
                 started_ms => distsec_guard:started(),
                 carrier => carrier(),
                 listeners => listeners(),
                 optfile_digest => Digest,
                 links => links()}).

%% A frame is bounded, and so is what the orchestrator takes of links; those that should not be
%% up come first.
links() ->
    {Denied, Allowed} = lists:partition(fun(#{verdict := Verdict}) -> Verdict =:= deny end,
                                        distsec_links:all()),
    [distsec_links:shown(Link) || Link <- lists:sublist(Denied ++ Allowed, ?MAX_LINKS)].

-spec heartbeat() -> map().
heartbeat() ->
    Lanes = [critical, refusals],
    maps:merge(maps:merge(distsec_policy:summary(), distsec_count:report()),
               #{links => length(distsec_links:all()),
                 sequence => maps:from_list([{L, distsec_ring:sequence(L)} || L <- Lanes]),
                 dropped => maps:from_list([{L, distsec_ring:dropped(L)} || L <- Lanes])}).

%% Which carrier net_kernel really listens with, from its own state rather than from the flags.
%% Its layout is internal: element 1 of a listener is `listen`, the last is the module
%% (net_kernel.erl, #listen{}, OTP 25 to 29). It does not change while the VM runs.
-spec carrier() -> binary() | undefined.
carrier() ->
    case persistent_term:get(?CARRIER, undefined) of
        undefined ->
            Carrier = ask_carrier(),
            _ = Carrier =/= undefined andalso persistent_term:put(?CARRIER, Carrier),
            Carrier;
        Carrier ->
            Carrier
    end.

ask_carrier() ->
    try tuple_to_list(sys:get_state(net_kernel, 2000)) of
        Fields ->
            Modules = [element(tuple_size(L), L) || [_ | _] = List <- Fields, L <- List,
                                                    is_tuple(L), element(1, L) =:= listen],
            Names = [binary:replace(atom_to_binary(M, utf8), <<"_dist">>, <<>>) || M <- Modules],
            case Names of
                [] -> undefined;
                _ -> iolist_to_binary(lists:join($,, Names))
            end
    catch
        exit:_ -> undefined
    end.

%% Sockets that net_kernel opened are its listeners; links belong to other processes.
listeners() ->
    NetKernel = whereis(net_kernel),
    [#{address => list_to_binary(inet:ntoa(Ip)), port => Number}
     || Port <- erlang:ports(), erlang:port_info(Port, connected) =:= {connected, NetKernel},
        erlang:port_info(Port, name) =:= {name, "tcp_inet"},
        {ok, {Ip, Number}} <- [inet:sockname(Port)]].
