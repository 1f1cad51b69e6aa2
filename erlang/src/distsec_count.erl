%% Counters since the VM started: exact whatever the rings had to drop, and of a fixed number
%% whatever a stranger does. The heartbeat carries them.
-module(distsec_count).

-export([new/0, refusal/2, check/3, report/0, reasons/0]).

-type action() :: handshake_in | handshake_out | link_in | link_out.

-define(KEY, {distsec, count}).
-define(DIRECTIONS, [in, out]).
-define(ACTIONS, [handshake_in, handshake_out, link_in, link_out]).
-define(RESULTS, [allow, deny]).
%% Upper bounds of the histogram of decide/2, in microseconds.
-define(BOUNDS, [5, 10, 25, 50, 100, 250, 500, 1000, 5000, infinity]).

%% distsec.model.policy.Reason, the same set.
-spec reasons() -> [atom()].
reasons() ->
    [no_policy, denied, not_allowed, not_open, revoked, expired, not_yet_valid, unknown_ca,
     certificate_required, certificate_invalid, no_identity, key_usage, name_not_in_certificate,
     unsafe_name, too_many_names, not_hidden, not_inbound, wrong_peer, refused_by_peer, bad_cookie,
     protocol_version, malformed, handshake_failed, handshake_timeout, closed, flood_dropped,
     unlisted_link].

-spec new() -> ok.
new() ->
    Names = [{refusal, D, R} || D <- ?DIRECTIONS, R <- reasons()]
        ++ [{check, A, R} || A <- ?ACTIONS, R <- ?RESULTS]
        ++ [{bucket, B} || B <- ?BOUNDS] ++ [micros],
    Index = maps:from_list(lists:zip(Names, lists:seq(1, length(Names)))),
    persistent_term:put(?KEY, {counters:new(length(Names), [write_concurrency]), Index}).

-spec refusal(in | out, atom()) -> ok.
refusal(Direction, Reason) ->
    add({refusal, Direction, Reason}, 1).

%% One decision: what for, how it ended, and how long it took (native time units).
-spec check(action(), allow | deny, Native :: non_neg_integer()) -> ok.
check(Action, Result, Native) ->
    Micros = erlang:convert_time_unit(Native, native, microsecond),
    add({check, Action, Result}, 1),
    add(micros, Micros),
    add({bucket, hd([B || B <- ?BOUNDS, Micros =< B])}, 1). % an integer sorts before any atom

add(Name, Amount) ->
    {Counters, Index} = persistent_term:get(?KEY),
    counters:add(Counters, maps:get(Name, Index), Amount).

%% The heartbeat's part; buckets are per bound, not cumulative.
-spec report() -> map().
report() ->
    {Counters, Index} = persistent_term:get(?KEY),
    Get = fun(Name) -> counters:get(Counters, maps:get(Name, Index)) end,
    #{refusals => [{D, R, N} || D <- ?DIRECTIONS, R <- reasons(),
                                N <- [Get({refusal, D, R})], N > 0],
      checks => [{A, R, Get({check, A, R})} || A <- ?ACTIONS, R <- ?RESULTS],
      check_seconds => [{B, Get({bucket, B})} || B <- ?BOUNDS],
      check_micros_sum => Get(micros)}.
