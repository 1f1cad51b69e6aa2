%% What is known of links: the TLS sessions that passed verification, and the links that are up.
%% A session is found again by who set the link up, since a TLS connection monitors its owner; else
%% by the address of its peer, which `sys_dist` has for the link too, a moment after its nodeup.
%% Neither needs internals of ssl.
-module(distsec_links).

-include_lib("kernel/include/net_address.hrl").

-export([new/0, remember/3, session/1, own_session/0, sweep/0, end_sessions/1]).
-export([put/2, take/1, find/1, is_current/1, known_nodes/0, all/0, cut/1, receiver/1, owner/1, shown/1]).
-export([describe/2, tls_details/1, cipher/1]).

-export_type([link/0]).

-type link() :: #{atom() => term()}.
-type address() :: {inet:ip_address(), inet:port_number()}.

-define(SESSIONS, distsec_sessions).
-define(LINKS, distsec_links).
-define(MAX_SESSIONS, 4096).
-define(DETAILS_TIMEOUT_MS, 2000).

%% The tables belong to the caller.
-spec new() -> ok.
new() ->
    ?SESSIONS = ets:new(?SESSIONS, [named_table, public, bag, {write_concurrency, true}]),
    ?LINKS = ets:new(?LINKS, [named_table, public, set]),
    ok.

%% ---- sessions ---------------------------------------------------------------------------------

%% Called in the TLS process, once its peer is verified. With too many at once none is kept, and
%% the link is then refused for want of an identity.
-spec remember(address() | undefined, in | out, map()) -> ok.
remember(undefined, _, _) ->
    ok;
remember(Address, Direction, Peer) ->
    case ets:info(?SESSIONS, size) of
        Size when is_integer(Size), Size < ?MAX_SESSIONS ->
            ets:insert(?SESSIONS, {Address, Peer#{direction => Direction, process => self()}}),
            ok;
        _ ->
            ok
    end.

%% The one live session with that peer. Two nodes that dial each other, or one that dials twice,
%% may have several for a moment; if those differ in whom they are with, none is taken.
-spec session(address() | undefined) -> {ok, map()} | error.
session(Address) ->
    Live = [Session || {_, #{process := Pid} = Session} <- ets:lookup(?SESSIONS, Address),
                       is_process_alive(Pid)],
    case lists:usort([maps:remove(process, Session) || Session <- Live]) of
        [_] -> {ok, lists:last(Live)};
        _ -> error
    end.

%% The session of the connection that the calling process sets up, for the processes in which
%% dist_util does the handshake: a TLS connection monitors the process that owns it.
-spec own_session() -> {ok, address(), map()} | error.
own_session() ->
    first(owned_by(self())).

%% The session that carries a link: its controller is linked with the process that set it up. It is
%% linked with net_kernel too, which owns none and may be too busy to be asked.
-spec carrying(Controller :: term()) -> {ok, address(), map()} | error.
carrying(Controller) when is_pid(Controller) ->
    case process_info(Controller, links) of
        {links, Links} ->
            first(lists:flatmap(fun owned_by/1, Links -- [whereis(net_kernel)]));
        undefined -> error
    end;
carrying(_) ->
    error.

controller(Node) ->
    case lists:keyfind(Node, 1, erlang:system_info(dist_ctrl)) of
        {_, Controller} -> Controller;
        false -> undefined
    end.

owned_by(Owner) when is_pid(Owner) ->
    case process_info(Owner, monitored_by) of
        {monitored_by, Watchers} ->
            [Found || Pid <- Watchers, is_pid(Pid),
                      Found <- ets:match_object(?SESSIONS, {'_', #{process => Pid}})];
        undefined ->
            []
    end;
owned_by(_) ->
    [].

first([{Address, Session} | _]) -> {ok, Address, Session};
first([]) -> error.

%% Forgets sessions whose process is gone.
-spec sweep() -> ok.
sweep() ->
    ets:foldl(fun({_, #{process := Pid}} = Entry, ok) ->
                      _ = is_process_alive(Pid) orelse ets:delete_object(?SESSIONS, Entry),
                      ok
              end, ok, ?SESSIONS).

%% Ends the sessions, pending handshakes among them, for which Denied says true.
-spec end_sessions(fun((map()) -> boolean())) -> ok.
end_sessions(Denied) ->
    Up = maps:from_list([{receiver(Node), Node} || Node <- nodes(connected)]),
    ets:foldl(fun({_, #{process := Pid} = Session} = Entry, ok) ->
                      _ = Denied(Session)
                          andalso (is_map_key(Pid, Up) andalso distsec_parting:quietly(map_get(Pid, Up))
                                   orelse exit(Pid, kill))
                          andalso ets:delete_object(?SESSIONS, Entry),
                      ok
              end, ok, ?SESSIONS).

%% ---- links ------------------------------------------------------------------------------------

%% Only distsec_watch puts and takes.
-spec put(node(), link()) -> ok.
put(Node, Link) ->
    ets:insert(?LINKS, {Node, Link}),
    ok.

-spec take(node()) -> {ok, link()} | error.
take(Node) ->
    case ets:take(?LINKS, Node) of
        [{_, Link}] -> {ok, Link};
        [] -> error
    end.

-spec find(node()) -> {ok, link()} | error.
find(Node) ->
    case ets:lookup(?LINKS, Node) of
        [{_, Link}] -> {ok, Link};
        [] -> error
    end.

%% Whether what is known of the link with Node is of the connection that is up now, and of none before.
-spec is_current(node()) -> boolean().
is_current(Node) ->
    case {find(Node), controller(Node)} of
        {{ok, #{controller := Controller}}, Controller} -> Controller =/= undefined;
        _ -> false
    end.

-spec known_nodes() -> [node()].
known_nodes() ->
    [Node || {Node, _} <- ets:tab2list(?LINKS)].

-spec all() -> [link()].
all() ->
    [Link || {_, Link} <- ets:tab2list(?LINKS)].

%% Ends a link as net_kernel does (disconnect_ctrlr/3), whatever that knows of it.
-spec cut(node()) -> boolean().
cut(Node) ->
    case controller(Node) of
        undefined -> false;
        Controller -> exit(Controller, disconnect)
    end.

%% The process that receives for a link: it owns the link's socket.
-spec receiver(node()) -> pid() | undefined.
receiver(Node) ->
    case known(Node, controller(Node)) of
        {_, {ok, #{process := Pid}}} -> Pid;
        {_, {ok, #{socket := Socket}}} -> owner(Socket);
        _ -> undefined
    end.

%% Of a socket that has not gone.
-spec owner(gen_tcp:socket() | undefined) -> pid() | undefined.
owner(Socket) when is_port(Socket) ->
    case erlang:port_info(Socket, connected) of
        {connected, Pid} -> Pid;
        undefined -> undefined
    end;
owner(_) ->
    undefined.

%% What is told of a link (docs/port-protocol.md).
-spec shown(link()) -> link().
shown(Link) ->
    maps:with([peer, address, identity, issuer, serial, not_after, direction, hidden, tls_version, cipher,
               since_ms, verdict, reason, rule], Link).

%% What can be said at once of a link that just came up; docs/port-protocol.md, `Link`.
-spec describe(node(), hidden | visible) -> {link(), Session :: map() | undefined}.
describe(Node, NodeType) ->
    Controller = controller(Node),
    {Address, Found} = known(Node, Controller),
    Base = #{controller => Controller, peer => atom_to_binary(Node, utf8),
             address => distsec_report:address(Address), hidden => NodeType =:= hidden,
             since_ms => distsec_report:now_ms(), tls_version => undefined, cipher => undefined},
    case Found of
        {ok, Session} ->
            {maps:merge(Base, maps:with([identity, identities, names, usages, issuer, serial,
                                         not_after, direction, tls_version, cipher], Session)),
             Session};
        error ->
            {Base#{identity => undefined, identities => [], names => [], issuer => undefined, serial => undefined,
                   not_after => undefined, direction => direction(Address)},
             undefined}
    end.

%% The carrier knows each of its links by its controller, exactly and at once; of those of the stock
%% carrier the session is found.
known(Node, Controller) ->
    case distsec_attempts:of_controller(Controller) of
        {ok, #{address := Address} = Attempt} ->
            {Address, {ok, Attempt}};
        error ->
            case carrying(Controller) of
                {ok, Address, Session} ->
                    {Address, {ok, Session}};
                error ->
                    InTable = dist_address(Node),
                    {InTable, session(InTable)}
            end
    end.

%% Without a session (cookies only): who is dialled is known by its port, the others dialled.
direction(undefined) ->
    undefined;
direction(Address) ->
    Shown = distsec_report:address(Address),
    Dialled = [iolist_to_binary([A, $:, integer_to_list(P)])
               || #{address := A, port := P} <- distsec_policy:peers(distsec_policy:in_force())],
    case lists:member(Shown, Dialled) of
        true -> out;
        false -> in
    end.

%% net_kernel keeps the connection in its table sys_dist; the record's layout is not relied on.
dist_address(Node) ->
    try ets:lookup(sys_dist, Node) of
        [Connection] ->
            case [A || #net_address{address = A} <- tuple_to_list(Connection)] of
                [Address | _] -> Address;
                [] -> undefined
            end;
        [] -> undefined
    catch
        error:badarg -> undefined
    end.

%% Version and cipher as negotiated, asked of the TLS process itself
%% (ssl_gen_statem:connection_information/2, OTP 25 to 29). May take as long as that is busy,
%% so it is asked from a process of its own.
-spec tls_details(map() | undefined) -> link().
tls_details(#{process := Pid}) ->
    Caller = self(),
    Tag = make_ref(),
    Asker = spawn(fun() -> Caller ! {Tag, ssl_gen_statem:connection_information(Pid, false)} end),
    receive
        {Tag, {ok, Facts}} ->
            #{tls_version => distsec_report:text(proplists:get_value(protocol, Facts)),
              cipher => cipher(proplists:get_value(selected_cipher_suite, Facts))};
        {Tag, _} ->
            #{}
    after ?DETAILS_TIMEOUT_MS ->
            exit(Asker, kill),
            #{}
    end;
tls_details(undefined) ->
    #{}.

%% The name of a suite as ssl describes it.
-spec cipher(term()) -> binary() | undefined.
cipher(#{} = Suite) ->
    try list_to_binary(ssl:suite_to_str(Suite)) catch error:_ -> undefined end;
cipher(_) ->
    undefined.
