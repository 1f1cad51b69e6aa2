%% Accepts connections for the carrier and does the TLS handshake of each in a process of its own. The
%% acceptor itself only accepts: nothing that a peer does, or leaves undone, delays the next one.
-module(distsec_acceptor).

-export([start/1]).

-define(TLS_MS, 5000).
-define(HANDOVER_MS, 10000).
-define(TURN_MS, 20).
-define(FIRST_BACKOFF_MS, 20).
-define(LONGEST_BACKOFF_MS, 1000).
-define(TELL_EVERY_MS, 60000).

%% Called in net_kernel, which links with it and starts another should it end (net_kernel:restart_distr/2
%% closes everything then, so it does not end for what will pass).
-spec start(gen_tcp:socket()) -> pid().
start(Listen) ->
    Kernel = self(),
    spawn_link(fun() ->
                       process_flag(priority, max),
                       wait_for_code_server(),
                       accept(Listen, family(Listen), Kernel, ?FIRST_BACKOFF_MS)
               end).

%% The first connection may come before it is there (inet_tls_dist:wait_for_code_server/0, OTP 25).
wait_for_code_server() ->
    case whereis(code_server) of
        undefined -> receive after 10 -> wait_for_code_server() end;
        _ -> ok
    end.

family(Listen) ->
    case inet:sockname(Listen) of
        {ok, {Ip, _}} when tuple_size(Ip) =:= 8 -> inet6;
        _ -> inet
    end.

accept(Listen, Family, Kernel, Backoff) ->
    case gen_tcp:accept(Listen) of
        {ok, Socket} ->
            begin_handshake(Socket, Family, Kernel),
            accept(Listen, Family, Kernel, ?FIRST_BACKOFF_MS);
        {error, closed} ->
            exit(closed);
        {error, Why} when Why =:= emfile; Why =:= enfile; Why =:= enobufs; Why =:= enomem;
                          Why =:= system_limit ->
            %% Out of descriptors: waiting lets the deadlines of those that hold them pass. To end here
            %% would take the distribution down.
            tell(Why),
            receive after Backoff -> ok end,
            accept(Listen, Family, Kernel, min(Backoff * 2, ?LONGEST_BACKOFF_MS));
        {error, _} -> % the peer was gone before it was accepted
            receive after 1 -> ok end,
            accept(Listen, Family, Kernel, Backoff)
    end.

%% Once a minute at the most: the limit may be reached and left many times a second.
tell(Why) ->
    Now = erlang:monotonic_time(millisecond),
    case get(told) of
        Last when is_integer(Last), Now - Last < ?TELL_EVERY_MS -> ok;
        _ ->
            put(told, Now),
            logger:critical("distsec: no connection can be accepted (~p); raise the limit of open files "
                            "or processes. Links that are up stay, and it is tried again", [Why])
    end.

begin_handshake(Socket, Family, Kernel) ->
    try spawn(fun() -> wait(Family, Kernel) end) of
        Worker -> begin_handshake(Worker, Socket)
    catch
        error:system_limit -> % no process can be started, so this one must not end
            gen_tcp:close(Socket),
            tell(system_limit)
    end.

begin_handshake(Worker, Socket) ->
    Address = case inet:peername(Socket) of
                  {ok, Peer} -> Peer;
                  {error, _} -> undefined
              end,
    case distsec_attempts:inbound(Worker, #{direction => in, address => Address, socket => Socket}) of
        {ok, Id} ->
            case gen_tcp:controlling_process(Socket, Worker) of
                ok -> Worker ! {go, Id, Socket}, ok;
                {error, _} -> gen_tcp:close(Socket), Worker ! {go, Id, gone}, ok
            end;
        refused ->
            gen_tcp:close(Socket),
            exit(Worker, kill)
    end.

wait(Family, Kernel) ->
    receive
        {go, Id, gone} -> distsec_attempts:refuse(Id, closed, #{});
        {go, Id, Socket} -> handshake(Id, Socket, Family, Kernel)
    after ?HANDOVER_MS -> ok
    end.

handshake(Id, Socket, Family, Kernel) ->
    Until = erlang:monotonic_time(millisecond) + ?TLS_MS,
    case turn(Id, Until) of
        dropped -> gen_tcp:close(Socket);
        late ->
            distsec_attempts:refuse(Id, handshake_timeout, #{detail => <<"ssl is overloaded">>}),
            gen_tcp:close(Socket);
        {turn, Left} -> handshake(Id, Socket, Family, Kernel, Left)
    end.

%% While ssl is behind, who came waits here: within our bounds of half-open handshakes, and gone as soon
%% as it gives way. What ssl was once asked for it does, for whoever has gone long since, too.
turn(Id, Until) ->
    Left = Until - erlang:monotonic_time(millisecond),
    case distsec_tls:is_behind() of
        false when Left > 0 -> {turn, Left};
        _ when Left =< 0 -> late;
        true ->
            receive after ?TURN_MS -> ok end,
            case distsec_attempts:is_told(Id) of
                true -> dropped;
                false -> turn(Id, Until)
            end
    end.

handshake(Id, Socket, Family, Kernel, Milliseconds) ->
    case distsec_tls:accept(Socket, #{attempt => Id}, Milliseconds) of
        {ok, Ssl} ->
            case distsec_handshake:admitted(Id, Ssl) of
                true -> serve(distsec_tls:purpose(Ssl), Id, Ssl, Family, Kernel);
                false -> ssl:close(Ssl)
            end;
        {error, Why} ->
            {Reason, Detail} = distsec_tls:failure(Why),
            distsec_attempts:refuse(Id, inbound(Reason), #{detail => Detail}),
            gen_tcp:close(Socket)
    end.

serve(link, Id, Ssl, Family, Kernel) ->
    give(Id, Ssl, Family, Kernel);
serve(proof, Id, Ssl, _, _) ->
    _ = distsec_proof:answer(Id, Ssl),
    ssl:close(Ssl);
serve(closed, _, Ssl, _, _) ->
    ssl:close(Ssl).

%% A peer that dials us and then sends an alert has refused nobody.
inbound(refused_by_peer) -> handshake_failed;
inbound(Reason) -> Reason.

%% net_kernel names the process that goes on (net_kernel, handle_info({accept, …})).
give(Id, Ssl, Family, Kernel) ->
    Kernel ! {accept, self(), {distsec, Id, Ssl}, Family, tls},
    receive
        {Kernel, controller, Pid} ->
            Given = case ssl:controlling_process(Ssl, Pid) of
                        ok -> distsec_attempts:handover(Id, Pid);
                        Error -> Error
                    end,
            case Given of
                ok ->
                    Pid ! {self(), controller};
                _ ->
                    Pid ! {self(), exit},
                    distsec_attempts:refuse(Id, closed, #{}),
                    ssl:close(Ssl)
            end;
        {Kernel, unsupported_protocol} ->
            distsec_attempts:refuse(Id, handshake_failed, #{detail => <<"unsupported_protocol">>}),
            ssl:close(Ssl)
    after ?HANDOVER_MS ->
            distsec_attempts:refuse(Id, handshake_timeout, #{}),
            ssl:close(Ssl)
    end.
