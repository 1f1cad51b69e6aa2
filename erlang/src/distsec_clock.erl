%% What time it is for whoever judges whether something has expired: the wall clock, but never before
%% the time that has passed since it was last believed, by the clock that nobody can set. So a wall
%% clock that is set back revives nothing. One that is set far ahead is taken at its word for as long
%% as it says so; only when it has said so for a while is it believed, and no longer undone by setting
%% it back (docs/adr/0011-clock-steps.md). The policy's `issued_at` stands below (distsec_admission).
%%
%% judged/3 and look/3 are pure. The state is three counters, so that every gate reads it without
%% asking a process and nothing that restarts forgets it.
-module(distsec_clock).

-export([new/0, now/0, look/0]).
-export([judged/3, look/3]).

-export_type([memory/0]).

%% Milliseconds. `believed`: Unix time minus steady time as it was last believed; `seen`: the same at
%% the last look; `ahead_since`: the steady time since which the wall clock is far ahead of it.
-type memory() :: #{believed := integer(), seen := integer(), ahead_since := integer() | undefined}.

-define(KEY, {distsec, clock}).
-define(BELIEVED, 1).
-define(SEEN, 2).
-define(AHEAD, 3).
-define(NEVER, (-1 bsl 62)).

%% Less between two looks is a clock that is set right now and then, or a look that came late.
-define(STEP_MS, 60000).
-define(BELIEVED_AFTER_MS, 600000).

%% ---- pure ---------------------------------------------------------------------------------------

%% Unix milliseconds to judge by.
-spec judged(WallMs :: integer(), SteadyMs :: integer(), Believed :: integer()) -> integer().
judged(WallMs, SteadyMs, Believed) ->
    max(WallMs, Believed + SteadyMs).

%% What is remembered after a look at both clocks, and by how many milliseconds the wall clock was
%% set ahead (or back, below 0) since the last one; 0 if it was not.
-spec look(WallMs :: integer(), SteadyMs :: integer(), memory()) -> {integer(), memory()}.
look(WallMs, SteadyMs, #{believed := Believed, seen := Seen, ahead_since := Since} = Memory) ->
    Offset = WallMs - SteadyMs,
    Stepped = case abs(Offset - Seen) > ?STEP_MS of
                  true -> Offset - Seen;
                  false -> 0
              end,
    Next = Memory#{seen := Offset},
    {Stepped,
     case Offset - Believed of
         Ahead when Ahead =< 0 ->
             Next#{ahead_since := undefined};
         Ahead when Ahead =< ?STEP_MS ->
             Next#{believed := Offset, ahead_since := undefined};
         %% Another step begins the wait anew: it is the last word that has to hold.
         _ when Since =:= undefined; Stepped =/= 0 ->
             Next#{ahead_since := SteadyMs};
         _ when SteadyMs - Since >= ?BELIEVED_AFTER_MS ->
             Next#{believed := Offset, ahead_since := undefined};
         _ ->
             Next
     end}.

%% ---- this node's --------------------------------------------------------------------------------

%% Once, at boot, before anything is judged.
-spec new() -> ok.
new() ->
    Counters = atomics:new(3, [{signed, true}]),
    Offset = wall_ms() - steady_ms(),
    store(Counters, #{believed => Offset, seen => Offset, ahead_since => undefined}),
    persistent_term:put(?KEY, Counters).

%% Unix seconds.
-spec now() -> integer().
now() ->
    case persistent_term:get(?KEY, undefined) of
        undefined -> os:system_time(second);
        Counters -> judged(wall_ms(), steady_ms(), atomics:get(Counters, ?BELIEVED)) div 1000
    end.

%% For distsec_watch alone, each second: reports a wall clock that was set.
-spec look() -> ok.
look() ->
    Counters = persistent_term:get(?KEY),
    {Stepped, Memory} = look(wall_ms(), steady_ms(), load(Counters)),
    store(Counters, Memory),
    case Stepped of
        0 -> ok;
        _ -> distsec_report:critical(clock_stepped, #{reason => way(Stepped),
                                                      seconds => (abs(Stepped) + 500) div 1000})
    end.

way(Stepped) when Stepped > 0 -> ahead;
way(_) -> back.

load(Counters) ->
    #{believed => atomics:get(Counters, ?BELIEVED), seen => atomics:get(Counters, ?SEEN),
      ahead_since => case atomics:get(Counters, ?AHEAD) of ?NEVER -> undefined; Since -> Since end}.

store(Counters, #{believed := Believed, seen := Seen, ahead_since := Since}) ->
    ok = atomics:put(Counters, ?BELIEVED, Believed),
    ok = atomics:put(Counters, ?SEEN, Seen),
    ok = atomics:put(Counters, ?AHEAD, case Since of undefined -> ?NEVER; _ -> Since end).

wall_ms() ->
    os:system_time(millisecond).

%% CLOCK_MONOTONIC, which stands while the machine sleeps. erlang:monotonic_time/0 would not do: OTP
%% makes it run up to 1 % off to bring a wall clock that was set back to it.
steady_ms() ->
    os:perf_counter(millisecond).
