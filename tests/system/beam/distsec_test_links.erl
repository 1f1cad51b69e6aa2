%% What a node goes through while others come and go: which of its links went down, and whether
%% `global` still does its work. Started in the node by a test; asked over its control socket.
-module(distsec_test_links).

-export([start/0, lost/0, locks/0]).

-define(PAUSE_MS, 20).

-spec start() -> ok.
start() ->
    Test = self(),
    _ = spawn(fun() ->
                      register(?MODULE, self()),
                      ok = net_kernel:monitor_nodes(true),
                      Test ! {?MODULE, ready},
                      watch([])
              end),
    _ = spawn(fun() ->
                      register(distsec_test_locks, self()),
                      Test ! {?MODULE, ready},
                      lock(0, 0)
              end),
    receive {?MODULE, ready} -> receive {?MODULE, ready} -> ok end end.

%% The peers whose link went down since this was asked last, as often as it did.
-spec lost() -> [node()].
lost() ->
    ask(?MODULE).

%% How many locks on all nodes this one has held since it was asked last, and the milliseconds that the
%% slowest took. Each node takes a lock of its own, so that none waits for another.
-spec locks() -> {non_neg_integer(), non_neg_integer()}.
locks() ->
    ask(distsec_test_locks).

ask(Name) ->
    Name ! {ask, self()},
    receive {Name, Answer} -> Answer end.

watch(Lost) ->
    receive
        {nodedown, Node} -> watch([Node | Lost]);
        {nodeup, _} -> watch(Lost);
        {ask, From} -> From ! {?MODULE, Lost}, watch([])
    end.

lock(Count, SlowestMs) ->
    receive
        {ask, From} -> From ! {distsec_test_locks, {Count, SlowestMs}}, lock(0, 0)
    after ?PAUSE_MS ->
            Began = erlang:monotonic_time(millisecond),
            ok = global:trans({{?MODULE, node()}, self()}, fun() -> ok end),
            lock(Count + 1, max(SlowestMs, erlang:monotonic_time(millisecond) - Began))
    end.
