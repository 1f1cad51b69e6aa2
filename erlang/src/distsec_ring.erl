%% Two bounded rings of events, one a lane. Whoever sees an event puts it here itself, without a
%% message to anybody: no mailbox grows under a flood, and nothing waits. The agent reads from
%% where it was and learns of what was overwritten by the numbers. Lanes share no slots, so
%% refusals never evict a violation.
%%
%% A writer takes its number before it stores, and may be ended or stand still in between. A slot only ever
%% goes on to a later number, and whoever takes it counts, once, what can no longer be read: so a late writer
%% neither overwrites nor counts, and its event is among what was dropped.
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
    Sequence = atomics:add_get(Atomics, ?SEQUENCE(Base), 1),
    Acknowledged = atomics:get(Atomics, ?ACKNOWLEDGED(Base)),
    _ = store(Table, Atomics, Lane, Sequence, Event, Acknowledged),
    wake(Atomics).

%% Puts it into its slot, and counts what that slot was for and nobody has read: what was stored there and
%% every number since. False where the slot is taken, by a later number or by `passed` for this one.
store(Table, Atomics, Lane, N, Content, Acknowledged) ->
    Capacity = capacity(Lane),
    Key = {Lane, N rem Capacity},
    Replaced = case ets:lookup(Table, Key) of
                   [] -> ets:insert_new(Table, {Key, N, Content}) andalso 0;
                   [{_, Before, passed}] when Before < N ->
                       replace(Table, Key, Before, N, Content) andalso Before;
                   [{_, Before, _}] when Before < N ->
                       replace(Table, Key, Before, N, Content) andalso Before - 1;
                   _ -> taken
               end,
    case Replaced of
        taken ->
            false;
        false -> % somebody else was faster
            store(Table, Atomics, Lane, N, Content, Acknowledged);
        Counted ->
            Lost = max(0, N - 1 - max(Counted, Acknowledged)) div Capacity,
            _ = Lost > 0 andalso atomics:add(Atomics, ?DROPPED(base(Lane)), Lost),
            true
    end.

replace(Table, Key, Before, N, Content) ->
    1 =:= ets:select_replace(Table, [{{Key, Before, '_'}, [], [{{{const, Key}, N, {const, Content}}}]}]).

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
%% overwritten, or acknowledged (to an orchestrator before this one), are passed over. One that is not stored
%% yet is waited for if it is above Patience; else it is given up, counted, and can no longer be stored.
-spec read(lane(), After :: non_neg_integer(), Limit :: pos_integer(),
           Patience :: non_neg_integer() | pass) ->
          {[{Sequence :: pos_integer(), map()}], Next :: non_neg_integer()}.
read(Lane, After, Limit, Patience) ->
    {Table, Atomics} = persistent_term:get(?KEY),
    Last = atomics:get(Atomics, ?SEQUENCE(base(Lane))),
    Gone = max(Last - capacity(Lane), atomics:get(Atomics, ?ACKNOWLEDGED(base(Lane)))),
    First = max(After, Gone) + 1,
    read(Table, Atomics, Lane, First, min(Last, First + Limit - 1), Patience, []).

read(_Table, _Atomics, _Lane, N, Last, _Patience, Events) when N > Last ->
    {lists:reverse(Events), N - 1};
read(Table, Atomics, Lane, N, Last, Patience, Events) ->
    case ets:lookup(Table, {Lane, N rem capacity(Lane)}) of
        [{_, N, passed}] ->
            read(Table, Atomics, Lane, N + 1, Last, Patience, Events);
        [{_, N, Event}] ->
            read(Table, Atomics, Lane, N + 1, Last, Patience, [{N, Event} | Events]);
        [{_, Later, _}] when Later > N ->
            read(Table, Atomics, Lane, N + 1, Last, Patience, Events);
        _ when N =< Patience -> % an atom is above any number
            give_up(Table, Atomics, Lane, N),
            read(Table, Atomics, Lane, N, Last, Patience, Events);
        _ ->
            {lists:reverse(Events), N - 1}
    end.

%% Unless its writer stores it, or a later one overtakes it, in this moment.
give_up(Table, Atomics, Lane, N) ->
    Base = base(Lane),
    _ = store(Table, Atomics, Lane, N, passed, atomics:get(Atomics, ?ACKNOWLEDGED(Base)))
        andalso atomics:add(Atomics, ?DROPPED(Base), 1),
    ok.

%% Everything up to Sequence was handed on. What was given up stays so, whenever its writer comes.
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
                      ets:select_delete(Table, [{{{Lane, N rem Capacity}, '$1', '$2'},
                                                 [{'=<', '$1', Upto}, {'=/=', '$2', passed}], [true]}])
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
