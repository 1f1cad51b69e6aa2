%% What the carrier leans on in this OTP, tried in this node before it listens: the functions of dist_util
%% and ssl that it calls, the layout of a handshake's first frame, and two TLS handshakes on loopback,
%% within the node, one with its own certificate and one with none. A release that the tests never saw
%% either does what is needed or does not listen (MAINTENANCE.md has the list).
-module(distsec_selfcheck).

-include_lib("kernel/include/dist.hrl").
-include_lib("kernel/include/dist_util.hrl").

-export([ensure/0, checks/0, run/1]).

%% Far beyond what a busy machine needs: a node that is merely slow is not to be halted.
-define(DEADLINE_MS, 60000).
-define(STEP_MS, 20000).
%% One flag of either half, so that a frame in which they moved is not taken for one that has them.
-define(BOTH_HALVES, (?DFLAG_NAME_ME bor ?DFLAG_HANDSHAKE_23)).
-define(CALLS, [{dist_util, handshake_other_started, 1}, {dist_util, handshake_we_started, 1},
                {dist_util, start_timer, 1}, {dist_util, reset_timer, 1}, {dist_util, split_node, 1},
                {dist_util, net_ticker_spawn_options, 0}, {tls_sender, dist_handshake_complete, 3},
                {inet_tls_dist, childspecs, 0}]).

-type check() :: {Name :: atom(), fun(() -> ok | {error, string()})}.

%% Halts the VM with the first thing that does not hold.
-spec ensure() -> ok.
ensure() ->
    case distsec_tls:load() of
        ok -> ok;
        {error, Text} -> distsec_guard:halt_with(carrier_options, Text)
    end,
    case run(checks()) of
        ok -> ok;
        {error, Name, Why} ->
            distsec_guard:halt_with(carrier_selfcheck,
                                    io_lib:format("the carrier does not work on this release of OTP (~s: ~ts); "
                                                  "use a release that is proven, or carrier = \"inet_tls\"",
                                                  [Name, Why]))
    end.

-spec checks() -> [check()].
checks() ->
    [{functions, fun functions/0}, {first_frame, fun first_frame/0}, {answer, fun answer/0},
     {no_certificate, fun no_certificate/0}, {handshake, fun handshake/0}].

%% Runs each in a process of its own, which may fail as it likes.
-spec run([check()]) -> ok | {error, Name :: atom(), Why :: string()}.
run([]) ->
    ok;
run([{Name, Check} | Rest]) ->
    {Pid, Monitor} = spawn_monitor(fun() -> exit({checked, Check()}) end),
    receive
        {'DOWN', Monitor, process, Pid, {checked, ok}} -> run(Rest);
        {'DOWN', Monitor, process, Pid, {checked, {error, Why}}} -> {error, Name, Why};
        {'DOWN', Monitor, process, Pid, Why} -> {error, Name, text("~0P", [Why, 20])}
    after ?DEADLINE_MS ->
            exit(Pid, kill),
            erlang:demonitor(Monitor, [flush]),
            {error, Name, "it does not end"}
    end.

text(Format, Arguments) ->
    lists:flatten(io_lib:format(Format, Arguments)).

%% ---- the checks ---------------------------------------------------------------------------------

functions() ->
    Missing = [text("~s:~s/~b", [M, F, A])
               || {M, F, A} <- ?CALLS,
                  code:ensure_loaded(M) =/= {module, M} orelse not erlang:function_exported(M, F, A)],
    case Missing of
        [] -> ok;
        _ -> {error, "missing: " ++ lists:join($\s, Missing)}
    end.

%% dist_util takes our #hs_data{} and sends a frame that distsec_gate reads. This node has no name yet,
%% so what it sends is the name of its host, with the wish to be named.
first_frame() ->
    case sent(fun dist_util:handshake_we_started/1, <<>>) of
        {ok, Frame} ->
            case distsec_gate:flags_and_name(Frame) of
                {ok, Flags, <<"selfcheck">>} when Flags band ?BOTH_HALVES =:= ?BOTH_HALVES -> ok;
                Other -> {error, text("the first frame is read as ~0P", [Other, 12])}
            end;
        {error, Why} ->
            {error, "dist_util sends no first frame: " ++ Why}
    end.

%% As the one who is dialled dist_util takes from a first frame the name that distsec_gate reads, asks
%% net_kernel about it, and answers. (What it sends next needs a node that has its name.)
answer() ->
    {ok, Frame} = sent(fun dist_util:handshake_we_started/1, <<>>),
    {ok, Flags, _} = distsec_gate:flags_and_name(Frame),
    Static = <<$N, (Flags band (bnot ?DFLAG_NAME_ME)):64, 1:32, 15:16, "other@selfcheck">>,
    {ok, <<"other@selfcheck">>, true} = distsec_gate:first_frame(Static),
    case sent(fun dist_util:handshake_other_started/1, Static) of
        {ok, <<"sok">>} -> ok;
        {ok, Other} -> {error, text("a first frame is answered by ~0P", [Other, 12])};
        {error, Why} -> {error, "a first frame is not answered: " ++ Why}
    end.

%% The first frame that dist_util sends in Handshake, where the other side has sent Received.
sent(Handshake, Received) ->
    Self = self(),
    Data = #hs_data{kernel_pid = Self, other_node = 'other@selfcheck', this_node = 'undefined@selfcheck',
                    timer = Self, socket = Self, this_flags = 0, request_type = hidden, allowed = [],
                    f_send = fun(_, Frame) -> exit({sent, iolist_to_binary(Frame)}) end,
                    f_recv = fun(_, _, _) -> {ok, binary_to_list(Received)} end},
    {Pid, Monitor} = spawn_monitor(fun() -> Handshake(Data) end),
    answer_as_net_kernel(Pid, Monitor).

answer_as_net_kernel(Pid, Monitor) ->
    receive
        {'DOWN', Monitor, _, _, {sent, Frame}} ->
            {ok, Frame};
        {'DOWN', Monitor, _, _, Why} ->
            {error, text("~0P", [Why, 12])};
        {Pid, {accept_pending, 'undefined@selfcheck', 'other@selfcheck', hidden}} ->
            Pid ! {self(), {accept_pending, ok}},
            answer_as_net_kernel(Pid, Monitor);
        {Pid, Other} ->
            exit(Pid, kill),
            {error, text("it asks ~0P", [Other, 12])}
    after ?STEP_MS ->
            {error, "it waits"}
    end.

%% A peer that shows no certificate must fail the handshake.
no_certificate() ->
    Client = fun(Socket) ->
                     ssl:connect(Socket, [{erl_dist, true}, {verify, verify_none}, {versions, ['tlsv1.3']},
                                          {log_level, none}, {server_name_indication, disable}], ?STEP_MS)
             end,
    case pair(Client) of
        {{error, {tls_alert, _}}, _} -> ok;
        {{ok, _}, _} -> {error, "a peer without a certificate is let in"};
        {Other, _} -> {error, text("~0P", [Other, 12])}
    end.

%% The node with itself. Each side must show the other the certificate, by verify_fun and afterwards;
%% there must be a sending process that the emulator can take; and frames must arrive as they were sent.
handshake() ->
    Self = self(),
    Client = fun(Socket) -> distsec_tls:connect(Socket, #{selfcheck => Self}, ?STEP_MS) end,
    case pair(Client) of
        {{ok, Server}, {ok, Dialled}} ->
            first_wrong([fun() -> verified(server) end, fun() -> verified(client) end,
                         fun() -> shown(Server) end, fun() -> shown(Dialled) end,
                         fun() -> sender(Server) end, fun() -> sender(Dialled) end,
                         fun() -> frames(Dialled, Server) end, fun() -> frames(Server, Dialled) end,
                         fun() -> too_long(Dialled, Server) end]);
        {Server, Dialled} ->
            {error, text("the handshake fails: ~0P, ~0P", [Server, 12, Dialled, 12])}
    end.

first_wrong([Check | Rest]) ->
    case Check() of
        ok -> first_wrong(Rest);
        Error -> Error
    end;
first_wrong([]) ->
    ok.

verified(Role) ->
    receive {distsec_selfcheck, Role, #{serial := _}} -> ok
    after 0 -> {error, text("verify_fun is not called by the ~s", [Role])}
    end.

shown(Ssl) ->
    case distsec_tls:peer(Ssl) of
        {ok, #{identities := _}} -> ok;
        {error, Reason} -> {error, text("after the handshake: ~s", [Reason])}
    end.

sender(Ssl) ->
    case distsec_tls:controller(Ssl) of
        undefined -> {error, "the layout of #sslsocket{} is not known"};
        Pid ->
            case process_info(Pid, dictionary) of
                {dictionary, Dictionary} ->
                    case lists:keyfind('$initial_call', 1, Dictionary) of
                        {_, {tls_sender, init, _}} -> ok;
                        Other -> {error, text("the sender is ~0P", [Other, 8])}
                    end;
                undefined -> {error, "the sender is gone"}
            end
    end.

%% Two frames that are sent at once must not run together.
frames(From, To) ->
    Sent = [<<"first">>, <<"the second">>],
    ok = lists:foreach(fun(Frame) -> ok = ssl:send(From, Frame) end, Sent),
    case [iolist_to_binary(Frame) || _ <- Sent, {ok, Frame} <- [ssl:recv(To, 0, ?STEP_MS)]] of
        Sent -> ok;
        Got -> {error, text("frames arrive as ~0P", [Got, 12])}
    end.

too_long(From, To) ->
    ok = ssl:send(From, binary:copy(<<0>>, 4096)),
    case ssl:recv(To, 0, ?STEP_MS) of
        {error, _} -> ok;
        {ok, _} -> {error, "a frame that is too long is taken"}
    end.

%% What accepting and dialling answer; both sides of the socket belong to this process's children, which
%% end with it.
pair(Dial) ->
    Loopback = case tuple_size(maps:get(interface, distsec_guard:guard())) of
                   4 -> {127, 0, 0, 1};
                   8 -> {0, 0, 0, 0, 0, 0, 0, 1}
               end,
    Family = case tuple_size(Loopback) of 4 -> inet; 8 -> inet6 end,
    Options = [Family, binary, {active, false}, {ip, Loopback}],
    {ok, Listen} = gen_tcp:listen(0, Options),
    {ok, {_, Port}} = inet:sockname(Listen),
    Self = self(),
    Dialler = spawn_link(fun() ->
                                 {ok, Socket} = gen_tcp:connect(Loopback, Port, Options, ?STEP_MS),
                                 {ok, Name} = inet:sockname(Socket),
                                 Self ! {self(), dials_from, Name},
                                 Self ! {self(), given(Dial(Socket), Self)},
                                 receive stop -> ok end
                         end),
    From = receive {Dialler, dials_from, Name} -> Name after ?STEP_MS -> exit(no_loopback) end,
    Accepted = accept_from(From, Listen, Self),
    Dialled = receive {Dialler, Result} -> Result after ?STEP_MS -> {error, timeout} end,
    {Accepted, Dialled}.

%% Nobody else who finds the port is taken for the other end.
accept_from(From, Listen, Checker) ->
    {ok, Socket} = gen_tcp:accept(Listen, ?STEP_MS),
    case inet:peername(Socket) of
        {ok, From} ->
            gen_tcp:close(Listen),
            distsec_tls:accept(Socket, #{selfcheck => Checker}, ?STEP_MS);
        _ ->
            gen_tcp:close(Socket),
            accept_from(From, Listen, Checker)
    end.

given({ok, Ssl}, Owner) ->
    case ssl:controlling_process(Ssl, Owner) of
        ok -> {ok, Ssl};
        Error -> Error
    end;
given(Error, _) ->
    Error.
