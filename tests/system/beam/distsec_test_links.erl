%% What a node goes through while others come and go: which of its links went down, and whether
%% `global` still does its work. Started in the node by a test; asked over its control socket.
-module(distsec_test_links).

-export([start/0, lost/0, ups/0, lock_on/0, locks/0]).

-define(PAUSE_MS, 20).

-spec start() -> ok.
start() ->
    Test = self(),
    _ = spawn(fun() ->
                      register(?MODULE, self()),
                      ok = net_kernel:monitor_nodes(true),
                      Test ! {?MODULE, ready},
                      watch([], #{})
              end),
    receive {?MODULE, ready} -> ok end.

%% The peers whose link went down since this was asked last, as often as it did.
-spec lost() -> [node()].
lost() ->
    ask(?MODULE).

%% When each link came up last, of those that did since the start, in milliseconds of the host's clock: a node
%% that is asked late says it no later.
-spec ups() -> [{node(), integer()}].
ups() ->
    ?MODULE ! {ups, self()},
    receive {?MODULE, Ups} -> maps:to_list(Ups) end.

%% Takes a lock on all nodes again and again, one of this node's own, so that none waits for another's.
%% To ask a node for its lock dials it, if a link was lost in between.
-spec lock_on() -> ok.
lock_on() ->
    Test = self(),
    _ = spawn(fun() ->
                      register(distsec_test_locks, self()),
                      Test ! {?MODULE, ready},
                      lock(0, 0)
              end),
    receive {?MODULE, ready} -> ok end.

%% How many locks that were since this was asked last, and the milliseconds that the slowest took.
-spec locks() -> {non_neg_integer(), non_neg_integer()}.
locks() ->
    ask(distsec_test_locks).

ask(Name) ->
    Name ! {ask, self()},
    receive {Name, Answer} -> Answer end.

watch(Lost, Ups) ->
    receive
        {nodedown, Node} -> watch([Node | Lost], Ups);
        {nodeup, Node} -> watch(Lost, Ups#{Node => os:system_time(millisecond)});
        {ups, From} -> From ! {?MODULE, Ups}, watch(Lost, Ups);
        {ask, From} -> From ! {?MODULE, Lost}, watch([], Ups)
    end.

lock(Count, SlowestMs) ->
    receive
        {ask, From} -> From ! {distsec_test_locks, {Count, SlowestMs}}, lock(0, 0)
    after ?PAUSE_MS ->
            Began = erlang:monotonic_time(millisecond),
            ok = global:trans({{?MODULE, node()}, self()}, fun() -> ok end),
            lock(Count + 1, max(SlowestMs, erlang:monotonic_time(millisecond) - Began))
    end.
