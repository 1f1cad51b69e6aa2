%% The gates of the carrier: at each of them the same decision about the same peer, with what is known
%% of it there (docs/security-model.md). What a peer sent is looked at as bytes, before any atom is made.
-module(distsec_gate).

-include_lib("kernel/include/dist.hrl").

-export([first_frame/1, challenge_frame/1, flags_and_name/1, claim/3, decide/2, decide/3, ending/3, printable/1]).

-define(MAX_NAME_BYTES, 255).
-define(HEADER_BYTES, 15).     % $N, flags, creation, length of the name (dist_util:recv_name_new/2)
-define(CHALLENGE_BYTES, 19).  % $N, flags, challenge, creation, length (dist_util:recv_challenge_new/2)

-type decision() :: distsec_policy:decision().

%% ---- frames -------------------------------------------------------------------------------------

%% The claimed name and whether the peer is hidden, of the first frame that a dialling peer sends.
%% `$n`, of releases before 23, is not taken, nor a peer that wants a name given (DFLAG_NAME_ME).
-spec first_frame(binary()) -> {ok, Name :: binary(), Hidden :: boolean()}
                             | {error, malformed | unsafe_name, Shown :: binary() | undefined}.
first_frame(Frame) ->
    case named(Frame, ?HEADER_BYTES) of
        {ok, Flags, Name} when Flags band ?DFLAG_NAME_ME =:= 0 ->
            case distsec_admission:safe_name(Name) of
                true -> {ok, Name, Flags band ?DFLAG_PUBLISHED =:= 0};
                false -> {error, unsafe_name, printable(Name)}
            end;
        {ok, _, Name} -> {error, unsafe_name, printable(Name)};
        error -> {error, malformed, undefined}
    end.

%% Whether the peer that we dialled says that it is hidden, of its challenge. Its name dist_util
%% compares with the one that was dialled (recv_challenge_new/2, without making an atom).
-spec challenge_frame(binary()) -> {ok, Name :: binary(), Hidden :: boolean()} | error.
challenge_frame(Frame) ->
    case named(Frame, ?CHALLENGE_BYTES) of
        {ok, Flags, Name} -> {ok, Name, Flags band ?DFLAG_PUBLISHED =:= 0};
        error -> error
    end.

%% What first_frame/1 reads, unjudged: for the self-check.
-spec flags_and_name(binary()) -> {ok, Flags :: non_neg_integer(), Name :: binary()} | error.
flags_and_name(Frame) ->
    named(Frame, ?HEADER_BYTES).

named(Frame, Header) when byte_size(Frame) >= Header ->
    Length = binary:decode_unsigned(binary:part(Frame, Header - 2, 2)),
    case binary:at(Frame, 0) =:= $N andalso byte_size(Frame) >= Header + Length of
        true -> {ok, binary:decode_unsigned(binary:part(Frame, 1, 8)), binary:part(Frame, Header, Length)};
        false -> error
    end;
named(_, _) ->
    error.

%% Any bytes as bounded ASCII, for people.
-spec printable(binary()) -> binary().
printable(Bytes) ->
    Shown = binary_to_list(binary:part(Bytes, 0, min(byte_size(Bytes), ?MAX_NAME_BYTES))),
    iolist_to_binary(bounded([case Byte >= $\s andalso Byte < 127 of
                                  true -> [Byte];
                                  false -> "\\x" ++ binary_to_list(distsec_identity:hex(<<Byte>>))
                              end || Byte <- Shown], ?MAX_NAME_BYTES)).

bounded([Text | Rest], Left) when length(Text) =< Left -> [Text | bounded(Rest, Left - length(Text))];
bounded(_, _) -> [].

%% ---- the decision -------------------------------------------------------------------------------

-spec claim(distsec_attempts:facts(), Live :: non_neg_integer(), Now :: integer()) -> distsec_policy:claim().
claim(#{direction := Direction} = Facts, Live, Now) ->
    #{direction => Direction,
      identities => maps:get(identities, Facts, []),
      names => maps:get(names, Facts, []),
      usages => maps:get(usages, Facts, undefined),
      node => distsec_guard:node_name(),
      serial => maps:get(serial, Facts, undefined),
      not_after => maps:get(not_after, Facts, undefined),
      name => maps:get(name, Facts, undefined),
      hidden => maps:get(hidden, Facts, undefined),
      live => Live, now => Now}.

%% What the policy in force says of an attempt now.
-spec decide(distsec_attempts:id(), distsec_attempts:facts()) -> decision().
decide(Id, Facts) ->
    decide(Id, Facts, distsec_policy:in_force()).

-spec decide(distsec_attempts:id(), distsec_attempts:facts(), distsec_policy:policy() | undefined) -> decision().
decide(Id, Facts, #{require_identity := false} = Policy) ->
    %% What development mode lets pass, on its carrier without certificates, passes nowhere here.
    decide(Id, Facts, Policy#{require_identity := true});
decide(Id, #{direction := Direction} = Facts, Policy) ->
    Started = erlang:monotonic_time(),
    Decision = with_live(Id, Facts, distsec_policy:decide(claim(Facts, 0, distsec_clock:now()), Policy),
                         Policy),
    Action = case Direction of in -> handshake_in; out -> handshake_out end,
    distsec_count:check(Action, element(1, Decision), erlang:monotonic_time() - Started),
    Decision.

%% A rule bounds how many names one certificate has at a time: they are counted only where a rule, and
%% no listed name, was what admitted.
with_live(Id, #{name := Name, serial := Serial} = Facts, {allow, Rule} = Allow, Policy)
  when Rule =/= undefined, Rule =/= Name ->
    case distsec_attempts:live(Id, Serial, Rule) of
        0 -> Allow;
        Live -> distsec_policy:decide(claim(Facts, Live, distsec_clock:now()), Policy)
    end;
with_live(_, _, Decision, _) ->
    Decision.

%% ---- what an end means --------------------------------------------------------------------------

%% Why an attempt came to nothing, from how its process ended, where no gate has told it. `crossed`: that
%% is none if another attempt, in the other direction, came in between (net_kernel arbitrates).
-spec ending(Why :: term(), distsec_attempts:stage(), distsec_attempts:facts()) ->
          {refused | crossed, atom(), map()} | benign.
ending(unreachable, _, _) -> benign;             % nothing answers there: no TLS was spoken
ending(normal, _, _) -> benign;
ending({shutdown, refused}, _, _) -> benign;     % a gate has told it
%% net_kernel took another attempt instead: ours, or another one of the same peer.
ending(Why, _, _) when Why =:= noproc; Why =:= killed; Why =:= remarked -> {crossed, closed, #{}};
ending(Why, _, #{direction := Direction}) ->
    case reason(Why) of
        closed when Direction =:= in -> {crossed, closed, #{}};
        closed -> {crossed, closed, #{detail => distsec_report:text(Why)}};
        Reason -> {refused, Reason, #{detail => distsec_report:text(Why)}}
    end.

%% dist_util of OTP 25 says `shutdown` or connection_setup_failed where later ones say what failed; and
%% with a session goes its controller, `{shutdown, _}`, with which the handshake is linked. Whichever is
%% first, it is the peer that went.
reason({recv_challenge_reply_failed, bad_cookie}) -> bad_cookie;
reason({recv_challenge_ack_failed, bad_cookie}) -> bad_cookie;
reason({recv_status_failed, not_allowed}) -> refused_by_peer;
reason({is_allowed, not_allowed}) -> not_allowed; % net_kernel:allow/1 of the application
reason({recv_challenge_failed, no_node, _}) -> wrong_peer;
reason(setup_timer_timeout) -> handshake_timeout;
reason({shutdown, _}) -> closed;
reason({_, {error, {tls_alert, _}}}) -> refused_by_peer;
reason({_, {error, timeout}}) -> handshake_timeout;
reason({check_dflags_failed, _}) -> malformed;
reason({_, {error, _}}) -> closed;
reason(Why) when Why =:= shutdown; Why =:= connection_setup_failed -> closed;
reason(_) -> malformed.
