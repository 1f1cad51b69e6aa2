%% The carrier (`-proto_dist distsec`): Erlang distribution over mutual TLS 1.3 in which a link comes up
%% only between nodes whose certificates, names and the policy agree. These are net_kernel's callbacks
%% (inet_tls_dist has the same); what they do stands in distsec_acceptor and distsec_handshake.
%%
%% IPv4 or IPv6 follows from the interface of the guard, and for a peer from its address in the policy.
-module(distsec_dist).

-include_lib("kernel/include/net_address.hrl").

-export([childspecs/0, select/1, address/0, listen/2, accept/1, accept_connection/5, setup/5, close/1,
         is_node_name/1]).

-define(BACKLOG, 1024).

%% ssl's processes for the distribution.
-spec childspecs() -> {ok, [term()]}.
childspecs() ->
    inet_tls_dist:childspecs().

%% Whether Node is dialled: a listed, open, not denied name with an address. Runs inside net_kernel, for
%% names that an application or a peer came up with: nothing is resolved, nothing waited for.
-spec select(node()) -> boolean().
select(Node) ->
    distsec_policy:address(atom_to_binary(Node, utf8)) =/= error.

%% For a node that does not listen (`-dist_listen false`) and only dials.
-spec address() -> #net_address{}.
address() ->
    case distsec_tls:load() of
        ok -> ok;
        {error, Text} -> distsec_guard:halt_with(carrier_options, Text)
    end,
    ok = distsec_tool:cookies(),
    #net_address{protocol = tls, family = inet}.

-spec is_node_name(term()) -> boolean().
is_node_name(Node) ->
    dist_util:is_node_name(Node).

%% Called in net_kernel before anything listens: the guard and the cookies first, then the options, then
%% the proof that this OTP does what the carrier leans on. Any of them halts the VM where it fails.
-spec listen(term(), term()) -> {ok, {gen_tcp:socket(), #net_address{}, pos_integer()}} | {error, term()}.
listen(Name, Host) ->
    {ok, Port} = distsec_epmd:listen_port_please(Name, Host),
    ok = distsec_selfcheck:ensure(),
    Interface = maps:get(interface, distsec_guard:guard()),
    Family = case tuple_size(Interface) of 4 -> inet; 8 -> inet6 end,
    case gen_tcp:listen(Port, listen_options(Family, Interface)) of
        {ok, Listen} ->
            {ok, {_, Bound} = Address} = inet:sockname(Listen),
            Driver = case Family of inet -> inet_tcp; inet6 -> inet6_tcp end,
            {ok, Creation} = distsec_epmd:register_node(Name, Bound, Driver),
            {ok, {Listen, #net_address{address = Address, host = Host, protocol = tls, family = Family},
                  Creation}};
        Error ->
            Error
    end.

listen_options(Family, Interface) ->
    Own = [Family, {ip, Interface}, binary, {active, false}, {packet, raw}, {reuseaddr, true},
           {backlog, ?BACKLOG}, {nodelay, true}] ++ [{ipv6_v6only, true} || Family =:= inet6],
    case application:get_env(kernel, inet_dist_listen_options) of
        {ok, Options} when is_list(Options) ->
            Own ++ [Option || {Key, _} = Option <- Options,
                              not lists:member(Key, [active, packet, mode, ip, ifaddr, fd, nodelay,
                                                     reuseaddr, reuseport, backlog, ipv6_v6only])];
        _ -> Own
    end.

-spec accept(gen_tcp:socket()) -> pid().
accept(Listen) ->
    distsec_acceptor:start(Listen).

-spec accept_connection(pid(), {distsec, distsec_attempts:id(), term()}, node(), [term()], timeout()) -> pid().
accept_connection(Worker, {distsec, Id, Ssl}, MyNode, Allowed, SetupTime) ->
    Kernel = self(),
    spawn_handshake(fun() ->
                            distsec_handshake:accepted({Kernel, Worker}, Id, Ssl, MyNode, Allowed, SetupTime)
                    end).

-spec setup(node(), atom(), node(), longnames | shortnames, timeout()) -> pid().
setup(Node, Type, MyNode, _LongOrShortNames, SetupTime) ->
    Kernel = self(),
    spawn_handshake(fun() ->
                            ok = distsec_tool:others_first(Node),
                            distsec_handshake:dial(Kernel, Node, Type, MyNode, SetupTime)
                    end).

spawn_handshake(Fun) ->
    case spawn_opt(Fun, dist_util:net_ticker_spawn_options()) of
        Pid when is_pid(Pid) -> Pid;
        {Pid, _} -> Pid
    end.

-spec close(gen_tcp:socket()) -> ok.
close(Listen) ->
    gen_tcp:close(Listen).
