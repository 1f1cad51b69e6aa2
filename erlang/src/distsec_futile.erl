%% Names that a rule let in and that came to nothing, by a wrong cookie most of all. By then OTP has
%% made an atom of each (dist_util:handshake_other_started/1), and an atom is for ever. So for a
%% minute each counts as if it were up: who holds a command-line tool's certificate and not the
%% cookie makes no more than `max_live` of them a minute.
-module(distsec_futile).

-export([new/0, add/3, names/2]).

-define(TABLE, distsec_futile).
-define(KEPT_MS, 60000).
-define(MOST, 4096).

%% The table belongs to the caller.
-spec new() -> ok.
new() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, ordered_set]),
    ok.

-spec add(Serial :: binary(), Rule :: binary(), Name :: binary()) -> ok.
add(Serial, Rule, Name) ->
    Now = erlang:monotonic_time(millisecond),
    _ = ets:select_delete(?TABLE, [{{'_', '$1'}, [{'=<', '$1', Now}], [true]}]),
    _ = ets:info(?TABLE, size) < ?MOST
        andalso ets:insert(?TABLE, {{Serial, Rule, Name}, Now + ?KEPT_MS}),
    ok.

%% Those of one certificate under one rule; `full` where more is going on than is kept, so that
%% nobody knows.
-spec names(Serial :: binary(), Rule :: binary()) -> [binary()] | full.
names(Serial, Rule) ->
    case ets:info(?TABLE, size) < ?MOST of
        true ->
            Now = erlang:monotonic_time(millisecond),
            ets:select(?TABLE, [{{{Serial, Rule, '$1'}, '$2'}, [{'>', '$2', Now}], ['$1']}]);
        false ->
            full
    end.
