%% Two bounded rings of events, one a lane. Whoever sees an event puts it here itself, without a
%% message to anybody: no mailbox grows under a flood, and nothing waits. The agent reads from
%% where it was and learns of what was overwritten by the numbers. Lanes share no slots, so
%% refusals never evict a violation.
-module(distsec_ring).

-export([new/0, put/2, read/4, acknowledge/2, sequence/1, dropped/1, rearm/0, capacity/1]).

-export_type([lane/0]).

-type lane() :: critical | refusals.

-define(KEY, {distsec, ring}).
%% Positions in the atomics array; three a lane, then the flag.
-define(SEQUENCE(Base), (Base)).
-define(ACKNOWLEDGED(Base), (Base + 1)).
-define(DROPPED(Base), (Base + 2)).
-define(WAKE, 7).

%% Makes the rings. Their table belongs to the caller and goes with it.
-spec new() -> ok.
new() ->
    Table = ets:new(distsec_ring, [set, public, {write_concurrency, true}]),
    persistent_term:put(?KEY, {Table, atomics:new(7, [{signed, false}])}).

-spec capacity(lane()) -> pos_integer().
capacity(critical) -> 16384;
capacity(refusals) -> 8192.

base(critical) -> 1;
base(refusals) -> 4.

%% Adds an event; the oldest of the lane gives way when it is full.
-spec put(lane(), map()) -> ok.
put(Lane, Event) ->
    {Table, Atomics} = persistent_term:get(?KEY),
    Base = base(Lane),
    Capacity = capacity(Lane),
    Sequence = atomics:add_get(Atomics, ?SEQUENCE(Base), 1),
    case Sequence > Capacity
        andalso Sequence - Capacity > atomics:get(Atomics, ?ACKNOWLEDGED(Base)) of
        true -> atomics:add(Atomics, ?DROPPED(Base), 1);
        false -> ok
    end,
    ets:insert(Table, {{Lane, Sequence rem Capacity}, Sequence, Event}),
    wake(Atomics).

%% At most one wake is ever under way: the reader re-arms before it reads.
wake(Atomics) ->
    case atomics:exchange(Atomics, ?WAKE, 1) of
        0 ->
            case whereis(distsec_agent) of
                undefined -> ok;
                Pid -> Pid ! distsec_wake, ok
            end;
        1 ->
            ok
    end.

-spec rearm() -> ok.
rearm() ->
    {_, Atomics} = persistent_term:get(?KEY),
    atomics:put(Atomics, ?WAKE, 0).

%% Up to Limit events after number After, oldest first, and the number to go on from. Numbers that were
%% overwritten, or acknowledged (to an orchestrator before this one), are passed over. A writer takes its
%% number before it stores: `wait` stops at one that is not stored yet, `pass` goes on (its writer was
%% ended in between).
-spec read(lane(), After :: non_neg_integer(), Limit :: pos_integer(), wait | pass) ->
          {[{Sequence :: pos_integer(), map()}], Next :: non_neg_integer()}.
read(Lane, After, Limit, Patience) ->
    {Table, Atomics} = persistent_term:get(?KEY),
    Last = atomics:get(Atomics, ?SEQUENCE(base(Lane))),
    Gone = max(Last - capacity(Lane), atomics:get(Atomics, ?ACKNOWLEDGED(base(Lane)))),
    First = max(After, Gone) + 1,
    read(Table, Lane, First, min(Last, First + Limit - 1), Patience, []).

read(_Table, _Lane, N, Last, _Patience, Events) when N > Last ->
    {lists:reverse(Events), N - 1};
read(Table, Lane, N, Last, Patience, Events) ->
    case ets:lookup(Table, {Lane, N rem capacity(Lane)}) of
        [{_, N, Event}] ->
            read(Table, Lane, N + 1, Last, Patience, [{N, Event} | Events]);
        [{_, Later, _}] when Later > N ->
            read(Table, Lane, N + 1, Last, Patience, Events);
        _ when N =< Patience -> % an atom is above any number
            read(Table, Lane, N + 1, Last, Patience, Events);
        _ ->
            {lists:reverse(Events), N - 1}
    end.

%% Everything up to Sequence was handed on.
-spec acknowledge(lane(), non_neg_integer()) -> ok.
acknowledge(Lane, Sequence) ->
    {Table, Atomics} = persistent_term:get(?KEY),
    Base = base(Lane),
    Capacity = capacity(Lane),
    Last = atomics:get(Atomics, ?SEQUENCE(Base)),
    Before = atomics:get(Atomics, ?ACKNOWLEDGED(Base)),
    Upto = min(Sequence, Last),
    case Upto > Before of
        true ->
            atomics:put(Atomics, ?ACKNOWLEDGED(Base), Upto),
            lists:foreach(
              fun(N) ->
                      ets:select_delete(Table, [{{{Lane, N rem Capacity}, '$1', '_'},
                                                 [{'=<', '$1', Upto}], [true]}])
              end, lists:seq(max(Before, Upto - Capacity) + 1, Upto));
        false ->
            ok
    end.

-spec sequence(lane()) -> non_neg_integer().
sequence(Lane) ->
    {_, Atomics} = persistent_term:get(?KEY),
    atomics:get(Atomics, ?SEQUENCE(base(Lane))).

-spec dropped(lane()) -> non_neg_integer().
dropped(Lane) ->
    {_, Atomics} = persistent_term:get(?KEY),
    atomics:get(Atomics, ?DROPPED(base(Lane))).
