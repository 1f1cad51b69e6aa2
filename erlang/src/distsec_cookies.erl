%% The cookies of this node, and how a listener takes either of two while they are being rotated.
%%
%% OTP knows one cookie per peer (auth:get_cookie/1), and dist_util compares with that. While the
%% cluster rotates (docs/cookies.md), a node that is dialled has to take the cookie in use and another
%% one: the carrier sees each frame, so where the answer to a challenge was made with the other cookie,
%% dist_util is handed the answer that it expects, and the acknowledgement that it then sends is made
%% anew with the cookie that the dialler has. A wrong answer is handed on as it came.
%%
%% The node that dials uses the cookie in use and no other. What is leant on here, three frames and how
%% a digest is made, `proven/0` tries with this release's own dist_util before any other cookie is taken.
-module(distsec_cookies).

-include_lib("kernel/include/dist_util.hrl").

-export([install/0, set/1, use/1, spoil/1, candidates/1, proven/0]).
-export([received/3, sent/2]).
-export([greeted/1, challenged/3, answered/2, acknowledged/2, digest/2]).

-export_type([candidates/0, handshake/0]).

-define(KEY, {distsec, cookies}).
-define(PROVEN, {distsec, cookies_proven}).
-define(HANDSHAKE, {distsec, handshake_cookies}).
-define(CHALLENGE_AT, 9).      % $N, 8 bytes of flags, 4 of challenge (dist_util:send_challenge/2)
-define(CHALLENGE_BYTES, 19).
-define(REPLY_BYTES, 21).      % $r, 4 of challenge, 16 of digest (dist_util:recv_challenge_reply/3)
-define(ACK_BYTES, 17).        % $a, 16 of digest (dist_util:recv_challenge_ack/3)
-define(STEP_MS, 20000).

%% The cookie in use first, then what else is taken from a peer that dials.
-type candidates() :: [{current | other, Cookie :: binary()}].
%% A handshake in which this node is dialled. `before` and `since`: the candidates before dist_util
%% asks for the cookie, and after it has.
-type handshake() :: #{before := candidates(), since => candidates(), challenge => non_neg_integer(),
                       acknowledge => {Challenge :: non_neg_integer(), Cookie :: binary()}}.
%% What is taken beside the cookies in use. `named`: whoever was given a cookie of its own here, ever.
%% `default` is for everybody else: of these there may be any number, and no atom is made of their names.
-type others() :: #{step := non_neg_integer(), named := #{binary() => true},
                    peers := #{binary() => [binary()]}, default := [binary()]}.

%% ---- what is in force ---------------------------------------------------------------------------

%% Called in net_kernel just before it listens: the cookies of the node's file.
-spec install() -> ok.
install() ->
    #{default := Default, peers := Peers} = Cookies = distsec_guard:cookies(),
    true = erlang:set_cookie(binary_to_atom(Default, utf8)),
    ok = use(Peers),
    {ok, Others} = others(Cookies),
    keep(taking(maps:get(step, Cookies, 0), Others, state())).

%% The command `cookies`. What was meant for an earlier step of a rotation changes nothing.
-spec set(map()) -> {ok, #{step := non_neg_integer(), either := boolean()}} | {error, #{reason := atom(), _ => _}}.
set(#{step := Step, default := Default, peers := Peers} = Cookies)
  when is_integer(Step), is_binary(Default), is_map(Peers) ->
    case {state(), others(Cookies)} of
        {#{step := Now}, _} when Step < Now ->
            {error, #{reason => cookies_old}};
        {Before, {ok, Others}} ->
            case Others =:= none orelse takes_either() of
                true ->
                    %% What was taken so far is taken until the new ones are in use: there is no moment
                    %% in which a cookie is not taken that is taken before and afterwards.
                    Next = taking(Step, Others, Before),
                    ok = keep(both(Before, Next)),
                    true = erlang:set_cookie(binary_to_atom(Default, utf8)),
                    ok = use(Peers),
                    #{named := Named} = state(),
                    ok = keep(Next#{named := Named}),
                    {ok, #{step => Step, either => Others =/= none}};
                {error, Why} ->
                    {error, #{reason => cookies_unproven, detail => distsec_report:text(Why)}}
            end;
        {_, error} ->
            {error, #{reason => unknown}}
    end;
set(_) ->
    {error, #{reason => unknown}}.

%% What is to be taken besides: all of it, or nothing.
others(#{other_default := Default, other_peers := Peers}) when is_binary(Default), is_map(Peers) ->
    case lists:all(fun is_binary/1, maps:keys(Peers) ++ maps:values(Peers)) of
        true -> {ok, {Default, Peers}};
        false -> error
    end;
others(Cookies) ->
    case is_map_key(other_default, Cookies) orelse is_map_key(other_peers, Cookies) of
        true -> error;
        false -> {ok, none}
    end.

%% From now on these are dialled, and may dial, with these. Names and cookies are the orchestrator's own:
%% a bounded set of atoms.
-spec use(#{Peer :: binary() => Cookie :: binary()}) -> ok.
use(Peers) ->
    #{named := Named} = State = state(),
    maps:foreach(fun(Peer, Cookie) when is_binary(Peer), is_binary(Cookie) ->
                         true = erlang:set_cookie(binary_to_atom(Peer, utf8), binary_to_atom(Cookie, utf8))
                 end, Peers),
    case maps:merge(Named, maps:map(fun(_, _) -> true end, Peers)) of
        Named -> ok;
        More -> keep(State#{named := More})
    end.

%% Cookies that were good for these are good no longer.
-spec spoil([Peer :: binary()]) -> ok.
spoil([]) ->
    ok;
spoil(Peers) ->
    #{peers := Others} = State = state(),
    ok = keep(State#{peers := maps:without(Peers, Others)}),
    use(maps:from_list([{Peer, distsec_identity:hex(crypto:strong_rand_bytes(32))} || Peer <- Peers])).

%% What a link with Peer may be proven with now.
-spec candidates(Peer :: binary()) -> candidates().
candidates(Peer) ->
    Current = current(Peer),
    #{named := Named, peers := Peers, default := Default} = state(),
    Others = case Named of
                 #{Peer := true} -> maps:get(Peer, Peers, []);
                 #{} -> Default
             end,
    [{current, Current} | [{other, Other} || Other <- Others, Other =/= Current]].

%% A name of which there is no atom was given no cookie.
current(Peer) ->
    Cookie = try binary_to_existing_atom(Peer, utf8) of
                 Node -> auth:get_cookie(Node)
             catch
                 error:_ -> auth:get_cookie()
             end,
    atom_to_binary(Cookie, utf8).

taking(Step, none, State) ->
    State#{step := Step, peers := #{}, default := []};
taking(Step, {Default, Peers}, State) ->
    State#{step := Step, peers := maps:map(fun(_, Cookie) -> [Cookie] end, Peers), default := [Default]}.

both(#{peers := Peers, default := Default}, #{peers := MorePeers, default := MoreDefault} = Next) ->
    Together = maps:fold(fun(Peer, Cookies, Map) -> Map#{Peer => Cookies ++ maps:get(Peer, Map, [])} end,
                         MorePeers, Peers),
    Next#{peers := Together, default := Default ++ MoreDefault}.

-spec state() -> others().
state() ->
    persistent_term:get(?KEY, #{step => 0, named => #{}, peers => #{}, default => []}).

keep(State) ->
    persistent_term:put(?KEY, State).

%% ---- in a handshake -----------------------------------------------------------------------------
%% These two are called in the process of the handshake, for each frame that dist_util takes and sends.

%% The frame to hand on. `again`: the cookie was changed in the middle, and which one dist_util has
%% nobody can tell; the peer is to dial again.
-spec received(in | out, Number :: pos_integer(), binary()) -> binary() | again.
received(in, 1, Frame) ->
    case distsec_gate:first_frame(Frame) of
        {ok, Name, _} -> begin_with(fun() -> candidates(Name) end);
        {error, _, _} -> erase(?HANDSHAKE)
    end,
    Frame;
received(in, _, Frame) ->
    case get(?HANDSHAKE) of
        {Candidates, Handshake} ->
            case answered(Frame, Handshake) of
                {Next, After} -> put(?HANDSHAKE, {Candidates, After}), Next;
                again -> again
            end;
        undefined ->
            Frame
    end;
received(out, _, Frame) ->
    Frame.

begin_with(Candidates) ->
    put(?HANDSHAKE, {Candidates, greeted(Candidates())}).

%% The frame to send. With the acknowledgement the handshake's part of this is over.
-spec sent(in | out, iodata()) -> iodata().
sent(in, Packet) ->
    Frame = iolist_to_binary(Packet),
    case get(?HANDSHAKE) of
        {_, Handshake} when byte_size(Frame) =:= ?ACK_BYTES ->
            erase(?HANDSHAKE),
            acknowledged(Frame, Handshake);
        {Candidates, Handshake} ->
            put(?HANDSHAKE, {Candidates, challenged(Frame, Candidates, Handshake)}),
            Packet;
        undefined ->
            Packet
    end;
sent(out, Packet) ->
    Packet.

%% ---- the same without a process -----------------------------------------------------------------

-spec greeted(candidates()) -> handshake().
greeted(Before) ->
    #{before => Before}.

%% Our challenge, in the frame in which dist_util sends it; any other frame tells nothing.
-spec challenged(binary(), fun(() -> candidates()), handshake()) -> handshake().
challenged(Frame, Candidates, Handshake) when byte_size(Frame) >= ?CHALLENGE_BYTES ->
    case binary:at(Frame, 0) of
        $N -> Handshake#{since => Candidates(), challenge => number(Frame, ?CHALLENGE_AT)};
        _ -> Handshake
    end;
challenged(_, _, Handshake) ->
    Handshake.

%% The peer's answer, as dist_util is to have it; `again` as in received/3.
-spec answered(binary(), handshake()) -> {binary(), handshake()} | again.
answered(Frame, #{challenge := Challenge, before := [InUse | _], since := [InUse | _] = Since} = Handshake)
  when byte_size(Frame) =:= ?REPLY_BYTES ->
    {current, Expected} = InUse,
    case {binary:at(Frame, 0), made_with(Frame, Challenge, Since)} of
        {$r, [Cookie | _]} when Cookie =/= Expected ->
            {iolist_to_binary([binary:part(Frame, 0, 5), digest(Challenge, Expected)]),
             Handshake#{acknowledge => {number(Frame, 1), Cookie}}};
        _ ->
            {Frame, Handshake}
    end;
answered(Frame, #{challenge := Challenge, before := Before, since := Since} = Handshake)
  when byte_size(Frame) =:= ?REPLY_BYTES ->
    case made_with(Frame, Challenge, Before ++ Since) of
        [] -> {Frame, Handshake};
        _ -> again
    end;
answered(Frame, Handshake) ->
    {Frame, Handshake}.

%% The cookies with which the answer can have been made. All are tried, whichever it is.
made_with(Frame, Challenge, Candidates) ->
    Digest = binary:part(Frame, 5, 16),
    [Cookie || {_, Cookie} <- Candidates, distsec_port:same(digest(Challenge, Cookie), Digest)].

%% Our acknowledgement, as the peer is to have it.
-spec acknowledged(binary(), handshake()) -> binary().
acknowledged(Frame, #{acknowledge := {Challenge, Cookie}}) when byte_size(Frame) =:= ?ACK_BYTES ->
    case binary:at(Frame, 0) of
        $a -> iolist_to_binary([$a, digest(Challenge, Cookie)]);
        _ -> Frame
    end;
acknowledged(Frame, _) ->
    Frame.

%% dist_util:gen_digest/2.
-spec digest(non_neg_integer(), binary()) -> <<_:128>>.
digest(Challenge, Cookie) ->
    erlang:md5([Cookie, integer_to_list(Challenge)]).

number(Frame, At) ->
    binary:decode_unsigned(binary:part(Frame, At, 4)).

%% ---- the proof ----------------------------------------------------------------------------------

%% Once for each run of the VM.
takes_either() ->
    case persistent_term:get(?PROVEN, undefined) of
        undefined ->
            case distsec_snapshot:carrier() of
                <<"distsec">> ->
                    case distsec_selfcheck:run([{either_cookie, fun proven/0}]) of
                        ok -> persistent_term:put(?PROVEN, true), true;
                        {error, _, Why} -> {error, Why}
                    end;
                _ ->
                    {error, "this carrier takes one cookie only"}
            end;
        true ->
            true
    end.

%% dist_util with itself: a listener that has one cookie for the dialler and takes another beside it, and
%% a dialler that has that other one. Both must come through to where a link would come up.
-spec proven() -> ok | {error, string()}.
proven() ->
    Listens = 'listens@distsec.selfcheck',
    Dials = 'dials@distsec.selfcheck',
    [InUse, Other, _] = Random =
        [distsec_identity:hex(crypto:strong_rand_bytes(32)) || _ <- [in_use, other, afterwards]],
    [_, _, Afterwards] = [binary_to_atom(Cookie, utf8) || Cookie <- Random],
    true = erlang:set_cookie(Dials, binary_to_atom(InUse, utf8)),
    true = erlang:set_cookie(Listens, binary_to_atom(Other, utf8)),
    try
        Self = self(),
        Candidates = fun() -> [{current, InUse}, {other, Other}] end,
        Listener = spawn_monitor(
                     fun() ->
                             begin_with(Candidates),
                             Peer = receive {Self, peer, Pid} -> Pid end,
                             dist_util:handshake_other_started(in_memory(Self, Peer, in, Listens, undefined))
                     end),
        Dialler = spawn_monitor(
                    fun() ->
                            dist_util:handshake_we_started(in_memory(Self, element(1, Listener), out, Dials, Listens))
                    end),
        element(1, Listener) ! {Self, peer, element(1, Dialler)},
        both_through(Listener, Dialler)
    after
        true = erlang:set_cookie(Dials, Afterwards),
        true = erlang:set_cookie(Listens, Afterwards)
    end.

in_memory(Kernel, Peer, Direction, This, Other) ->
    #hs_data{kernel_pid = Kernel, this_node = This, other_node = Other, other_version = 6,
             timer = dist_util:start_timer(?STEP_MS), socket = Peer, this_flags = 0,
             request_type = hidden, allowed = [],
             f_send = fun(_, Packet) ->
                              Peer ! {frame, iolist_to_binary(sent(Direction, Packet))},
                              ok
                      end,
             f_recv = fun(_, _, _) ->
                              receive
                                  {frame, Frame} ->
                                      %% The listener's first frame began this before it came.
                                      {ok, binary_to_list(received(Direction, 2, Frame))}
                              after ?STEP_MS -> {error, timeout}
                              end
                      end,
             f_setopts_pre_nodeup = fun(_) -> exit(through) end}.

both_through({Listener, _} = One, {Dialler, _} = Two) ->
    receive
        {Listener, {accept_pending, _, _, _}} ->
            Listener ! {self(), {accept_pending, ok}},
            both_through(One, Two);
        {Pid, Asked} when Pid =:= Listener, is_tuple(Asked); Pid =:= Dialler, is_tuple(Asked) ->
            {error, lists:flatten(io_lib:format("it asks ~0P", [Asked, 12]))};
        {'DOWN', _, process, Listener, through} ->
            through(Dialler);
        {'DOWN', _, process, Dialler, through} ->
            through(Listener);
        {'DOWN', _, process, _, Why} ->
            {error, lists:flatten(io_lib:format("it ends with ~0P", [Why, 12]))}
    after ?STEP_MS ->
            {error, "it waits"}
    end.

through(Pid) ->
    receive
        {'DOWN', _, process, Pid, through} -> ok;
        {'DOWN', _, process, Pid, Why} -> {error, lists:flatten(io_lib:format("it ends with ~0P", [Why, 12]))}
    after ?STEP_MS ->
            {error, "it waits"}
    end.
