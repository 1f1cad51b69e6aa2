%% The distribution handshake over an established TLS session, by dist_util, with the carrier's gates in
%% the functions that dist_util calls on the way: the first frame, before any atom is made of it; just
%% before nodeup; and before the first byte of the distribution is delivered. At each the policy in force
%% at that moment is asked again. The process that comes through lives as long as the link does.
-module(distsec_handshake).

-include_lib("kernel/include/dist_util.hrl").
-include_lib("kernel/include/net_address.hrl").

-export([admitted/2, passes/1, connect_options/1, accepted/6, dial/5, hs_data/4]).

-define(CONNECT_MS, 5000).
-define(TRANSCRIPT, {distsec, transcript}).

-type id() :: distsec_attempts:id().

%% ---- gates --------------------------------------------------------------------------------------

%% After the TLS handshake: a certificate must have been shown, whatever TLS made of it, and be admitted
%% (a peer that we dialled: to be the one that was dialled).
-spec admitted(id(), term()) -> boolean().
admitted(Id, Ssl) ->
    case distsec_tls:peer(Ssl) of
        {ok, Peer} ->
            verified(Id, Peer) andalso known(Id, Ssl, Peer);
        {error, Reason} ->
            distsec_attempts:refuse(Id, Reason, #{}),
            false
    end.

%% verify_fun has been asked about this very certificate, and let it pass.
verified(Id, #{serial := Serial}) ->
    case distsec_attempts:facts(Id) of
        #{serial := Serial} -> true;
        _ -> distsec_attempts:refuse(Id, certificate_invalid, #{detail => <<"not verified">>}), false
    end.

known(Id, Ssl, Peer) ->
    distsec_attempts:learn(Id, maps:merge(distsec_verify:session(Peer), distsec_tls:details(Ssl))),
    distsec_attempts:learn(Id, #{controller => distsec_tls:controller(Ssl), proven => proven_now()}),
    passes(Id).

%% What we have shown, and when both ends proved themselves.
proven_now() ->
    #{serial := Serial, not_after := NotAfter} = distsec_tls:own(),
    #{own_serial => Serial, own_not_after => NotAfter, at_ms => erlang:monotonic_time(millisecond)}.

%% Whether the policy in force, now, admits what is known of an attempt; if not it is told of.
-spec passes(id()) -> boolean().
passes(Id) ->
    case distsec_attempts:facts(Id) of
        undefined -> false;
        Facts ->
            case distsec_gate:decide(Id, Facts) of
                {allow, Rule} -> distsec_attempts:learn(Id, #{rule => Rule}), true;
                {deny, Reason, Rule} -> distsec_attempts:refuse(Id, Reason, #{rule => Rule}), false
            end
    end.

%% The frames that say who the peer is; all others are dist_util's.
frame(Id, in, 1, Frame) ->
    case distsec_gate:first_frame(Frame) of
        {ok, Name, Hidden} ->
            distsec_attempts:learn(Id, #{name => Name, claimed => Name, hidden => Hidden}),
            passes(Id) andalso begin distsec_attempts:stage(Id, named), true end;
        {error, Reason, Claimed} ->
            distsec_attempts:refuse(Id, Reason, #{claimed => Claimed}),
            false
    end;
frame(Id, out, _, Frame) when byte_size(Frame) > 0 ->
    case binary:at(Frame, 0) =:= $N andalso distsec_gate:challenge_frame(Frame) of
        false -> true;
        {ok, _Name, Hidden} ->
            distsec_attempts:learn(Id, #{hidden => Hidden}),
            passes(Id) andalso begin distsec_attempts:stage(Id, named), true end;
        error ->
            distsec_attempts:refuse(Id, malformed, #{}),
            false
    end;
frame(_, _, _, _) ->
    true.

-spec refused(term()) -> no_return().
refused(Ssl) ->
    _ = ssl:close(Ssl),
    exit({shutdown, refused}).

%% ---- the peer dialled ---------------------------------------------------------------------------

-spec accepted({pid(), pid()}, id(), term(), node(), [term()], timeout()) -> no_return().
accepted({Kernel, Worker}, Id, Ssl, MyNode, Allowed, SetupTime) ->
    Monitor = monitor(process, Worker),
    receive
        {Worker, controller} -> demonitor(Monitor, [flush]);
        {Worker, exit} -> exit(shutdown);
        {'DOWN', Monitor, _, _, _} -> exit(shutdown)
    end,
    Timer = dist_util:start_timer(SetupTime),
    Data = hs_data(Id, Ssl, in, linked_controller(Ssl)),
    dist_util:handshake_other_started(
      Data#hs_data{kernel_pid = Kernel, this_node = MyNode, timer = Timer, this_flags = 0,
                   allowed = Allowed}).

%% ---- we dial ------------------------------------------------------------------------------------

%% TLS is done in a process of its own, which is not ended with this one: of two nodes that dial each other
%% at once net_kernel ends one attempt, and waits until it is gone. The peer then sees a whole TLS
%% handshake of a known node that goes no further, instead of one that anybody could have broken off.
-spec dial(pid(), node(), atom(), node(), timeout()) -> no_return().
dial(Kernel, Node, Type, MyNode, SetupTime) ->
    Timer = dist_util:start_timer(SetupTime),
    Self = self(),
    {Dialler, Monitor} = spawn_monitor(fun() -> exit(connect(atom_to_binary(Node, utf8), Self, SetupTime)) end),
    receive
        {Dialler, Id, Ssl} ->
            demonitor(Monitor, [flush]),
            Data = hs_data(Id, Ssl, out, linked_controller(Ssl)),
            dist_util:reset_timer(Timer),
            dist_util:handshake_we_started(
              Data#hs_data{kernel_pid = Kernel, other_node = Node, this_node = MyNode, timer = Timer,
                           this_flags = 0, other_version = 6, request_type = Type});
        {'DOWN', Monitor, process, Dialler, Why} ->
            exit({shutdown, Why})
    end.

connect(Name, Owner, SetupTime) ->
    case distsec_policy:address(Name) of
        {ok, Address} ->
            case distsec_attempts:outbound(self(), #{direction => out, address => Address, name => Name,
                                                     claimed => Name}) of
                {ok, Id} -> connect_to(Address, Id, Owner, SetupTime);
                refused -> refused
            end;
        error ->
            unlisted
    end.

connect_to({Ip, Port}, Id, Owner, SetupTime) ->
    case gen_tcp:connect(Ip, Port, connect_options(Ip), min(SetupTime, ?CONNECT_MS)) of
        {ok, Socket} ->
            distsec_attempts:learn(Id, #{socket => Socket}),
            case distsec_tls:connect(Socket, #{attempt => Id}, SetupTime) of
                {ok, Ssl} ->
                    _ = admitted(Id, Ssl) andalso give(Id, Ssl, Owner) orelse ssl:close(Ssl),
                    normal;
                {error, Why} ->
                    {Reason, Detail} = distsec_tls:failure(Why),
                    distsec_attempts:refuse(Id, Reason, #{detail => Detail}),
                    gen_tcp:close(Socket),
                    normal
            end;
        {error, _} ->
            unreachable
    end.

give(Id, Ssl, Owner) ->
    is_process_alive(Owner)
        andalso ssl:controlling_process(Ssl, Owner) =:= ok
        andalso distsec_attempts:handover(Id, Owner) =:= ok
        andalso begin Owner ! {self(), Id, Ssl}, true end.

-spec connect_options(inet:ip_address()) -> [term()].
connect_options(Ip) ->
    Own = [case tuple_size(Ip) of 4 -> inet; 8 -> inet6 end, binary, {active, false}, {packet, raw},
           {nodelay, true}],
    case application:get_env(kernel, inet_dist_connect_options) of
        {ok, Options} when is_list(Options) ->
            Own ++ [Option || {Name, _} = Option <- Options,
                              not lists:member(Name, [active, packet, mode, nodelay, ip, ifaddr, fd])];
        _ -> Own
    end.

%% ---- what dist_util needs -----------------------------------------------------------------------

%% The process that holds the link must end with the controller, and the other way round.
linked_controller(Ssl) ->
    case distsec_tls:controller(Ssl) of
        undefined -> exit(no_controller);
        Controller -> link(Controller), Controller
    end.

-spec hs_data(id(), term(), in | out, pid()) -> #hs_data{}.
hs_data(Id, Ssl, Direction, Controller) ->
    Address = case ssl:peername(Ssl) of
                  {ok, Peer} -> Peer;
                  {error, _} -> exit({shutdown, closed})
              end,
    Count = counters:new(1, []),
    #hs_data{
       socket = Controller,
       f_send =
           fun(_, Packet) ->
                   Frame = distsec_cookies:sent(Direction, Packet),
                   transcribe(Frame),
                   ssl:send(Ssl, Frame)
           end,
       f_recv = fun(_, Length, Timeout) -> receive_frame(Id, Ssl, Direction, Count, Length, Timeout) end,
       f_setopts_pre_nodeup =
           fun(_) ->
                   distsec_attempts:learn(Id, #{link => transcribed()}),
                   case passes(Id) of
                       true -> ok;
                       false -> refused(Ssl)
                   end
           end,
       f_setopts_post_nodeup = fun(_) -> ssl:setopts(Ssl, [{nodelay, true}]) end,
       f_getll = fun(_) -> {ok, Controller} end,
       f_address =
           fun(_, Node) ->
                   {node, _, Host} = dist_util:split_node(Node),
                   #net_address{address = Address, host = Host, protocol = tls,
                                family = case Address of
                                             {Ip, _} when tuple_size(Ip) =:= 8 -> inet6;
                                             _ -> inet
                                         end}
           end,
       mf_tick = fun(_) -> Controller ! tick, ok end,
       mf_getstat = fun(_) -> statistics_of(Ssl) end,
       mf_setopts =
           fun(_, Options) ->
                   case [O || {Name, _} = O <- Options, lists:member(Name, [active, deliver, packet])] of
                       [] -> ssl:setopts(Ssl, Options);
                       Bad -> {error, {badopts, Bad}}
                   end
           end,
       mf_getopts = fun(_, Options) -> ssl:getopts(Ssl, Options) end,
       f_handshake_complete =
           fun(_, Node, Handle) ->
                   %% The last gate: until this call nothing of the peer is delivered.
                   passes(Id) orelse refused(Ssl),
                   distsec_attempts:stage(Id, up),
                   distsec_watch:tell_of_links(),
                   tls_sender:dist_handshake_complete(Controller, Node, Handle)
           end}.

receive_frame(Id, Ssl, Direction, Count, Length, Timeout) ->
    case ssl:recv(Ssl, Length, Timeout) of
        {ok, Data} ->
            Frame = iolist_to_binary(Data),
            counters:add(Count, 1, 1),
            transcribe(Frame),
            case frame(Id, Direction, counters:get(Count, 1), Frame) of
                true ->
                    case distsec_cookies:received(Direction, counters:get(Count, 1), Frame) of
                        again -> refused(Ssl); % nobody is to blame
                        Taken -> {ok, binary_to_list(Taken)}
                    end;
                false ->
                    _ = Direction =:= in andalso ssl:send(Ssl, <<"snot_allowed">>),
                    refused(Ssl)
            end;
        {error, Why} = Error when Why =/= closed, Why =/= timeout, Why =/= enotconn ->
            {Reason, Detail} = distsec_tls:failure(Why),
            distsec_attempts:refuse(Id, received(Why, Reason), #{detail => Detail}),
            Error;
        Error ->
            Error
    end.

%% What both ends of a link know and nobody else does, and what no other link has: a hash of all frames of
%% its handshake, with the random challenges and the digests of the cookie in them, in the order in which
%% they crossed the wire, which is the same at both ends. A proof (distsec_proof) names the link by it.
transcribe(Packet) ->
    Frame = iolist_to_binary(Packet),
    Before = case get(?TRANSCRIPT) of undefined -> crypto:hash_init(sha256); Hash -> Hash end,
    _ = put(?TRANSCRIPT, crypto:hash_update(Before, [<<(byte_size(Frame)):32>>, Frame])),
    ok.

transcribed() ->
    case erase(?TRANSCRIPT) of
        undefined -> undefined;
        Hash -> crypto:hash_final(Hash)
    end.

%% A frame that is longer than any of the handshake's (packet_size) is the peer's fault.
received({invalid_packet, _}, _) -> malformed;
received(emsgsize, _) -> malformed;
received(_, Reason) -> Reason.

statistics_of(Ssl) ->
    case ssl:getstat(Ssl, [recv_cnt, send_cnt, send_pend]) of
        {ok, Counts} ->
            Get = fun(Key) -> proplists:get_value(Key, Counts, 0) end,
            {ok, Get(recv_cnt), Get(send_cnt), Get(send_pend)};
        Error ->
            Error
    end.
