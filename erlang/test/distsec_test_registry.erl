%% The registry of attempts (distsec_attempts) for a test, and those who attempt something.
-module(distsec_test_registry).

-export([await/1, await_clean/0, begin_registry/0, end_registry/1, facts/2, finish/2, half_open/0,
         inbound/1, is_clean/0, registry_test_/1, soon/2, told/0, told/1, worker/0]).

-define(PATIENCE_MS, 60000).
-define(TRIES, 10).

%% A registry and its tables, as distsec_app makes them.
-spec begin_registry() -> pid().
begin_registry() ->
    Owner = self(),
    {Holder, Monitor} = spawn_monitor(
                          fun() ->
                                  ok = distsec_count:new(),
                                  ok = distsec_ring:new(),
                                  ok = distsec_attempts:new(),
                                  ok = distsec_futile:new(),
                                  process_flag(trap_exit, true),
                                  {ok, _} = distsec_attempts:start_link(),
                                  Owner ! {self(), ready},
                                  hold()
                          end),
    receive {Holder, ready} -> ok; {'DOWN', Monitor, _, _, Why} -> error(Why) end,
    demonitor(Monitor, [flush]),
    Holder.

hold() ->
    receive
        {'EXIT', _, _} -> hold();
        {restart, From} ->
            {ok, Pid} = distsec_attempts:start_link(),
            From ! {restarted, Pid},
            hold();
        stop ->
            gen_server:stop(distsec_attempts)
    end.

-spec end_registry(pid()) -> ok.
end_registry(Holder) ->
    Monitor = monitor(process, Holder),
    _ = whereis(distsec_attempts) =:= undefined orelse (Holder ! stop),
    _ = whereis(distsec_attempts) =:= undefined andalso exit(Holder, kill),
    receive {'DOWN', Monitor, _, _, _} -> ok end.

%% A test of EUnit's: Test is given the process that holds the registry.
-spec registry_test_(fun((pid()) -> term())) -> tuple().
registry_test_(Test) ->
    {setup, fun begin_registry/0, fun end_registry/1,
     fun(Holder) -> {timeout, 120, fun() -> Test(Holder) end} end}.

%% Until Condition is true; what it was last is told where it never is.
-spec await(fun(() -> term())) -> ok.
await(Condition) ->
    await(Condition, erlang:monotonic_time(millisecond) + ?PATIENCE_MS).

await(Condition, Deadline) ->
    case Condition() of
        true -> ok;
        Seen ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({waited_too_long, Seen}),
            receive after 2 -> await(Condition, Deadline) end
    end.

%% Whether Try, which answers how many milliseconds something took, answers less than Bound in one of some
%% tries. A machine that stands still makes some of them late; what the product holds back is late in all.
-spec soon(fun(() -> integer()), pos_integer()) -> boolean().
soon(Try, Bound) ->
    lists:any(fun(_) -> Try() < Bound end, lists:seq(1, ?TRIES)).

%% Someone who does a handshake, and ends as told.
-spec worker() -> pid().
worker() ->
    spawn(fun() -> receive {finish, Why} -> exit(Why) end end).

-spec finish(pid(), term()) -> term().
finish(Pid, Why) ->
    Pid ! {finish, Why}.

-spec facts(in | out, binary()) -> map().
facts(Direction, Name) ->
    #{direction => Direction, address => {{127, 0, 0, 1}, 40000}, identity => Name}.

-spec inbound(binary()) -> {pid(), term()}.
inbound(Name) ->
    Pid = worker(),
    {ok, Id} = distsec_attempts:inbound(Pid, facts(in, Name)),
    {Pid, Id}.

%% {Identity, Reason} of every refusal that was told of, in order.
-spec told() -> [{binary(), atom()}].
told() ->
    {Events, _} = distsec_ring:read(refusals, 0, 100000, pass),
    [{Identity, Reason} || {_, #{type := refusal, identity := Identity, reason := Reason}} <- Events].

-spec told(binary()) -> [atom()].
told(Identity) ->
    [Reason || {I, Reason} <- told(), I =:= Identity].

-spec await_clean() -> ok.
await_clean() ->
    await(fun is_clean/0).

%% Nothing of any attempt is left anywhere.
-spec is_clean() -> term().
is_clean() ->
    #{half_open := HalfOpen, watched := Watched} = sys:get_state(distsec_attempts),
    {monitors, Monitors} = process_info(whereis(distsec_attempts), monitors),
    case {distsec_attempts:all(), distsec_halfopen:size(HalfOpen), maps:size(Watched), Monitors} of
        {[], 0, 0, []} -> true;
        Left -> Left
    end.

-spec half_open() -> non_neg_integer().
half_open() ->
    #{half_open := HalfOpen} = sys:get_state(distsec_attempts),
    distsec_halfopen:size(HalfOpen).
