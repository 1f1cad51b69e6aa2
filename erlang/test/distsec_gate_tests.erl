-module(distsec_gate_tests).
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").
-include_lib("kernel/include/dist.hrl").
-include_lib("kernel/include/dist_util.hrl").

-export([prop_no_first_frame_makes_an_atom_or_a_crash/0, prop_the_gate_reads_the_name_that_dist_util_reads/0,
         prop_what_is_shown_of_bytes_is_bounded_ascii/0, prop_every_end_is_benign_or_has_a_reason/0]).

%% What OTP 25 to 29 send of themselves (kernel/include/dist.hrl, DFLAGS_MANDATORY and MANDATORY_25_DIGEST).
-define(FLAGS, 16#0000000407070F94).

frame(Name) ->
    frame(?FLAGS, Name).

frame(Flags, Name) ->
    <<$N, Flags:64, 1:32, (byte_size(Name)):16, Name/binary>>.

challenge(Flags, Name) ->
    <<$N, Flags:64, 2:32, 1:32, (byte_size(Name)):16, Name/binary>>.

name_of(Bytes) ->
    <<(binary:copy(<<"n">>, Bytes - 2))/binary, "@h">>.

%% ---- the first frame of who dials ---------------------------------------------------------------

the_first_frame_says_a_name_and_whether_the_peer_is_hidden_test() ->
    ?assertEqual({ok, <<"a@h">>, true}, distsec_gate:first_frame(frame(<<"a@h">>))),
    Visible = frame(?FLAGS bor ?DFLAG_PUBLISHED, <<"a@h">>),
    ?assertEqual({ok, <<"a@h">>, false}, distsec_gate:first_frame(Visible)).

a_name_of_255_bytes_is_the_longest_test() ->
    Longest = name_of(255),
    ?assertEqual({ok, Longest, true}, distsec_gate:first_frame(frame(Longest))),
    ?assertMatch({error, unsafe_name, _}, distsec_gate:first_frame(frame(name_of(256)))),
    ?assertMatch({error, unsafe_name, _}, distsec_gate:first_frame(frame(name_of(65535)))).

names_that_no_node_of_a_cluster_has_are_refused_and_shown_as_ascii_test_() ->
    [{Shown, ?_assertEqual({error, unsafe_name, list_to_binary(Shown)},
                           distsec_gate:first_frame(frame(Name)))}
     || {Name, Shown} <- [{<<>>, ""},
                          {<<"undefined">>, "undefined"},
                          {<<"a">>, "a"},
                          {<<"a@">>, "a@"},
                          {<<"@h">>, "@h"},
                          {<<"@">>, "@"},
                          {<<"a@b@h">>, "a@b@h"},
                          {<<"a@@h">>, "a@@h"},
                          {<<"a", 0, "@h">>, "a\\x00@h"},
                          {<<"a@h", 0>>, "a@h\\x00"},
                          {<<"a b@h">>, "a b@h"},
                          {<<"a\n@h">>, "a\\x0a@h"},
                          {<<"a", 127, "@h">>, "a\\x7f@h"},
                          {<<"a", 27, "[2J@h">>, "a\\x1b[2J@h"},
                          {<<"\303\251@h">>, "\\xc3\\xa9@h"},
                          {<<"\351@h">>, "\\xe9@h"},
                          {<<"a\377\376@h">>, "a\\xff\\xfe@h"},
                          {<<"a\342\200\256@h">>, "a\\xe2\\x80\\xae@h"}]].

whoever_wants_a_name_given_is_refused_whatever_it_is_called_test_() ->
    [?_assertEqual({error, unsafe_name, Name},
                   distsec_gate:first_frame(frame(?FLAGS bor ?DFLAG_NAME_ME, Name)))
     || Name <- [<<"h">>, <<"a@h">>, <<"undefined@h">>]].

a_first_frame_that_is_cut_anywhere_is_none_test_() ->
    Whole = frame(<<"a@h">>),
    [?_assertEqual({error, malformed, undefined}, distsec_gate:first_frame(binary:part(Whole, 0, Length)))
     || Length <- lists:seq(0, byte_size(Whole) - 1)].

other_frames_are_none_test_() ->
    [?_assertEqual({error, malformed, undefined}, distsec_gate:first_frame(Frame))
     || Frame <- [<<$n, 5:16, ?FLAGS:32, "a@h-------------">>,      % of releases before 23
                  <<"sok">>, <<"GET / HTTP/1.1\r\n\r\n">>, <<$N>>, <<0:4096>>, <<-1:4096>>,
                  <<$N, ?FLAGS:64, 1:32, 65535:16, "a@h">>,          % a length that is not there
                  binary:copy(frame(<<>>), 0)]].

%% dist_util leaves what follows the name, and so does the gate: who claims a name claims that one.
what_follows_the_name_is_no_part_of_it_test() ->
    Longer = <<(frame(<<"a@h">>))/binary, "b@h", 0, 255>>,
    ?assertEqual({ok, <<"a@h">>, true}, distsec_gate:first_frame(Longer)).

%% ---- the challenge of whom we dial --------------------------------------------------------------

the_challenge_says_whether_who_was_dialled_is_hidden_test() ->
    ?assertEqual({ok, <<"a@h">>, true}, distsec_gate:challenge_frame(challenge(?FLAGS, <<"a@h">>))),
    ?assertEqual({ok, <<"a@h">>, false},
                 distsec_gate:challenge_frame(challenge(?FLAGS bor ?DFLAG_PUBLISHED, <<"a@h">>))).

a_challenge_that_is_cut_anywhere_is_none_test_() ->
    Whole = challenge(?FLAGS, <<"a@h">>),
    [?_assertEqual(error, distsec_gate:challenge_frame(binary:part(Whole, 0, Length)))
     || Length <- lists:seq(0, byte_size(Whole) - 1)].

%% ---- what people are shown ----------------------------------------------------------------------

what_is_shown_never_breaks_off_in_the_middle_of_a_byte_test() ->
    Shown = distsec_gate:printable(binary:copy(<<0>>, 300)),
    ?assert(byte_size(Shown) =< 255),
    ?assertEqual(binary:copy(<<"\\x00">>, byte_size(Shown) div 4), Shown).

%% ---- how attempts end ---------------------------------------------------------------------------

facts(Direction) ->
    #{direction => Direction}.

reason_of(Why, Stage, Direction) ->
    case distsec_gate:ending(Why, Stage, facts(Direction)) of
        {refused, Reason, _} -> Reason;
        {crossed, Reason, _} -> {crossed, Reason};
        benign -> benign
    end.

%% Every exit of dist_util and net_kernel before nodeup, of OTP 25, 27 and 29 (?shutdown and ?shutdown2 in
%% dist_util.erl; `remarked` of net_kernel's accept_pending). Where releases differ, both are here.
%% `crossed`: a refusal, unless the two nodes were dialling each other.
what_an_end_means_test_() ->
    Closed = {error, closed},
    Alert = {error, {tls_alert, {bad_certificate, "…"}}},
    [{lists:flatten(io_lib:format("~0p of ~s at ~s", [Why, Direction, Stage])),
      ?_assertEqual(Expected, reason_of(Why, Stage, Direction))}
     || {Expected, Why, Stage, Direction} <-
            [%% the peer shows the wrong cookie, or finds that we do
             {bad_cookie, {recv_challenge_reply_failed, bad_cookie}, named, in},
             {bad_cookie, {recv_challenge_ack_failed, bad_cookie}, named, out},
             %% the peer goes
             {{crossed, closed}, {recv_challenge_reply_failed, Closed}, named, in},
             {{crossed, closed}, {recv_challenge_ack_failed, Closed}, named, out},
             {{crossed, closed}, {recv_challenge_failed, Closed}, admitted, out},
             {{crossed, closed}, {recv_status_failed, Closed}, admitted, out},
             {{crossed, closed}, {recv_status_failed, Closed}, named, in},        % of its answer to `alive`
             {{crossed, closed}, {recv_name_failed, Closed}, admitted, in},       % 27, 29
             {{crossed, closed}, shutdown, admitted, in},                         % 25: the same
             {{crossed, closed}, shutdown, named, in}, % 25: it went before its status
             {{crossed, closed}, {send_status_failed, Closed}, named, in},        % 27, 29: the same
             {{crossed, closed}, {f_send_failed, Closed}, named, in},
             {{crossed, closed}, {f_send_failed, Closed}, named, out},
             {{crossed, closed}, {f_send_failed, {error, epipe}}, named, in},
             {{crossed, closed}, {f_setopts_post_nodeup_failed, Closed}, named, in},
             {{crossed, closed}, connection_setup_failed, named, in},             % 25: the same
             %% its TLS session ends, and with it the controller that the handshake is linked with
             {{crossed, closed}, {shutdown, {tls_alert, close_notify}}, admitted, in},
             {{crossed, closed}, {shutdown, normal}, named, in},
             {{crossed, closed}, {shutdown, transport_closed}, named, in},
             {{crossed, closed}, {shutdown, peer_close}, named, out},
             {{crossed, closed}, killed, tls, in},
             %% net_kernel prefers another attempt of the pair
             {{crossed, closed}, remarked, admitted, out},
             {{crossed, closed}, remarked, named, in},
             {{crossed, closed}, noproc, admitted, in},
             %% it says that we are not welcome
             {refused_by_peer, {recv_status_failed, not_allowed}, admitted, out},
             {refused_by_peer, {recv_challenge_failed, Alert}, admitted, out},
             %% it takes too long
             {handshake_timeout, setup_timer_timeout, tls, in},
             {handshake_timeout, setup_timer_timeout, named, in},
             {handshake_timeout, setup_timer_timeout, admitted, out},
             {handshake_timeout, {recv_challenge_reply_failed, {error, timeout}}, named, in},
             %% it is not one that net_kernel:allow/1 of the application lets in
             {not_allowed, {is_allowed, not_allowed}, named, in},
             %% it is another than who was dialled
             {wrong_peer, {recv_challenge_failed, no_node, "other@h"}, named, out},
             %% it does not speak as OTP does
             {malformed, {check_dflags_failed, ["BIG_CREATION"]}, named, in},
             {malformed, {recv_challenge_reply_failed, {ok, "r"}}, named, in},
             {malformed, {recv_challenge_ack_failed, {ok, "x"}}, named, out},
             {malformed, {recv_challenge_failed, {ok, "x"}}, admitted, out},
             {malformed, {recv_challenge_failed, "Nx"}, admitted, out},
             {malformed, {recv_complement_failed, {ok, "c"}}, named, in},
             {malformed, {recv_status_failed, unknown, "maybe"}, admitted, out},
             {malformed, {recv_status_failed, unexpected, "maybe"}, named, in},
             {malformed, {recv_status_failed, unexpected, "ok"}, admitted, out},
             {malformed, {{badmatch, "x"}, [{dist_util, recv_status, 1, []}]}, admitted, out},
             {malformed, {function_clause, [{dist_util, recv_name_new, 2, []}]}, admitted, in},
             %% nobody was refused
             {benign, normal, tls, in},
             {benign, unreachable, tls, out},
             {benign, {shutdown, refused}, named, in}]]. % told at its gate

%% ---- properties ---------------------------------------------------------------------------------

bytes() ->
    oneof([binary(),
           ?LET(B, binary(), <<$N, B/binary>>),
           ?LET({Flags, Length, Rest}, {flags(), range(0, 65535), binary()},
                <<$N, Flags:64, 1:32, Length:16, Rest/binary>>),
           ?LET({Flags, Name}, {flags(), binary()}, frame(Flags, Name)),
           ?LET({Flags, Name}, {flags(), name()}, frame(Flags, Name))]).

flags() ->
    oneof([range(0, 16#ffffffffffffffff), ?FLAGS, ?FLAGS bor ?DFLAG_PUBLISHED, ?FLAGS bor ?DFLAG_NAME_ME]).

name() ->
    ?LET({Head, Host}, {list(oneof([$a, $@, 0, 255, $.])), list(oneof([$h, $@, $\s, $1]))},
         list_to_binary([Head, $@, Host])).

prop_no_first_frame_makes_an_atom_or_a_crash() ->
    Modules = [distsec_gate, distsec_admission, distsec_identity, distsec_report, lists, binary],
    _ = [{module, _} = code:ensure_loaded(Module) || Module <- Modules],
    ?FORALL(Bytes, bytes(),
            begin
                Before = erlang:system_info(atom_count),
                Ok = case distsec_gate:first_frame(Bytes) of
                         {ok, Name, Hidden} ->
                             is_boolean(Hidden) andalso byte_size(Name) =< 255
                                 andalso distsec_admission:safe_name(Name);
                         {error, malformed, undefined} -> true;
                         {error, unsafe_name, Shown} -> is_bounded_ascii(Shown)
                     end,
                _ = distsec_gate:challenge_frame(Bytes),
                Ok andalso erlang:system_info(atom_count) =:= Before
            end).

is_bounded_ascii(Text) ->
    byte_size(Text) =< 255 andalso lists:all(fun(C) -> C >= $\s andalso C < 127 end, binary_to_list(Text)).

prop_what_is_shown_of_bytes_is_bounded_ascii() ->
    ?FORALL(Bytes, binary(), is_bounded_ascii(distsec_gate:printable(Bytes))).

%% Were there a frame of which the gate reads one name and dist_util another, a certificate could be shown
%% for the one and a link be had under the other.
prop_the_gate_reads_the_name_that_dist_util_reads() ->
    ?FORALL(Bytes, bytes(),
            case {distsec_gate:first_frame(Bytes), name_for_dist_util(Bytes)} of
                {{ok, Name, Hidden}, {Name, Type}} -> Hidden =:= (Type =:= hidden);
                {{ok, _, _}, none} -> true; % dist_util wants more of the flags
                {{ok, _, _}, _} -> false;
                {{error, _, _}, _} -> true
            end).

dist_util_takes_an_ordinary_frame_test() ->
    ?assertEqual({<<"a@h">>, hidden}, name_for_dist_util(frame(<<"a@h">>))).

%% Which name dist_util asks net_kernel about, having got this first frame.
name_for_dist_util(Frame) ->
    Self = self(),
    {Pid, Monitor} =
        spawn_monitor(
          fun() ->
                  dist_util:handshake_other_started(
                    #hs_data{kernel_pid = Self, this_node = node(), timer = Self, socket = Self, this_flags = 0,
                             request_type = normal, allowed = [],
                             f_send = fun(_, _) -> ok end,
                             f_recv = fun(_, _, _) -> {ok, binary_to_list(Frame)} end})
          end),
    receive
        {Pid, {accept_pending, _, Node, Type}} when is_atom(Node) ->
            exit(Pid, kill),
            receive {'DOWN', Monitor, _, _, _} -> {atom_to_binary(Node, latin1), Type} end;
        {Pid, {accept_pending, _, Host, _}} ->
            exit(Pid, kill),
            receive {'DOWN', Monitor, _, _, _} -> {wants_a_name, Host} end;
        {'DOWN', Monitor, _, _, _} -> none
    end.

prop_every_end_is_benign_or_has_a_reason() ->
    ?FORALL({Why, Stage, Direction}, {any(), oneof([tls, admitted, named]), oneof([in, out])},
            case distsec_gate:ending(Why, Stage, facts(Direction)) of
                benign -> true;
                {How, Reason, More} -> lists:member(How, [refused, crossed])
                                           andalso lists:member(Reason, distsec_count:reasons()) andalso is_map(More)
            end).

properties_hold_test_() ->
    {setup, fun quiet/0, fun loud/1,
     [{timeout, 120, ?_assert(proper:quickcheck(Property, [quiet, {numtests, 500}]))}
      || Property <- [prop_no_first_frame_makes_an_atom_or_a_crash(),
                      prop_what_is_shown_of_bytes_is_bounded_ascii(),
                      prop_the_gate_reads_the_name_that_dist_util_reads(),
                      prop_every_end_is_benign_or_has_a_reason()]]}.

%% dist_util logs what it refuses.
quiet() ->
    #{level := Level} = logger:get_primary_config(),
    ok = logger:set_primary_config(level, none),
    Level.

loud(Level) ->
    logger:set_primary_config(level, Level).
