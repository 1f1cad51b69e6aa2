%% Message load between nodes, and the proof that none of it was lost (tests/system/loads.py).
%%
%% On each node a sender for each peer, which numbers its messages, and one receiver, which looks at
%% the numbers. Messages go to a registered name and dial nobody: what is sent while no link is
%% up is lost, and shows.
-module(distsec_test_load).

-export([listen/0, start/1, stop/0, counts/0, downs/0, judge/2]).

-define(RECEIVER, distsec_test_load_receiver).
-define(WITNESS, distsec_test_load_witness).
-define(SENDERS, distsec_test_load_senders).
-define(MAX_MISSING, 100000).

%% `next`: the number that is due; `missing`: those before it that have not come (yet).
-type received() :: #{next := pos_integer(), received := non_neg_integer(),
                      missing := #{pos_integer() => []}, reordered := non_neg_integer(),
                      duplicates := non_neg_integer(), spoiled := non_neg_integer(),
                      last_ms := integer(), longest_ms := non_neg_integer()}.
-type options() :: #{peers := [node()], every_ms := pos_integer(), burst := non_neg_integer(),
                     burst_every := pos_integer(), large_bytes := non_neg_integer(),
                     large_every := pos_integer()}.

%% Makes ready to receive: on all nodes before `start/1` on any.
-spec listen() -> ok.
listen() ->
    lists:foreach(fun gone/1, [?SENDERS, ?WITNESS, ?RECEIVER]), % an earlier load's
    begun(?RECEIVER, fun() -> fun() -> receiver(#{}) end end),
    begun(?WITNESS, fun() ->
                            Wanted = [{node_type, all}, nodedown_reason],
                            ok = net_kernel:monitor_nodes(true, Wanted),
                            fun() -> witness([]) end
                    end).

%% From now on one message each `every_ms` to each peer; `burst` of them at once at each
%% `burst_every`th time; one of `large_bytes` at each `large_every`th.
-spec start(options()) -> ok.
start(#{peers := Peers} = Options) ->
    begun(?SENDERS, fun() ->
                            Each = [{Peer, spawn_link(fun() -> sender(Peer, Options) end)}
                                    || Peer <- Peers],
                            fun() -> senders(Each) end
                    end).

%% Ends the senders, after a message each, and returns as JSON how many each has sent, to whom.
-spec stop() -> string().
stop() ->
    object([{Peer, integer_to_list(Sent)} || {Peer, Sent} <- ask(?SENDERS)]).

%% Of each peer what has come, as JSON.
-spec counts() -> string().
counts() ->
    object([{Peer, object([{received, integer_to_list(Received)},
                           {last, integer_to_list(Next - 1)},
                           {gaps, integer_to_list(map_size(Missing))},
                           {reordered, integer_to_list(Reordered)},
                           {duplicates, integer_to_list(Duplicates)},
                           {spoiled, integer_to_list(Spoiled)},
                           {longest_pause_ms, integer_to_list(Longest)}])}
            || {Peer, #{received := Received, next := Next, missing := Missing,
                        reordered := Reordered, duplicates := Duplicates, spoiled := Spoiled,
                        longest_ms := Longest}}
                   <- maps:to_list(ask(?RECEIVER))]).

%% The nodeups and nodedowns since the start, oldest first, as JSON: [kind, peer, Unix ms, why].
-spec downs() -> string().
downs() ->
    array([array([quoted(Kind), quoted(Peer), integer_to_list(Ms),
                  quoted(io_lib:format("~0p", [Why]))])
           || {Kind, Peer, Ms, Why} <- ask(?WITNESS)]).

%% What the receiver makes of messages with these numbers, in this order. Pure.
-spec judge([pos_integer()], undefined | received()) -> received().
judge(Numbers, undefined) ->
    judge(Numbers, new(0));
judge(Numbers, State) ->
    lists:foldl(fun(Number, Before) -> took(Number, true, 0, Before) end, State, Numbers).

%% A process of that name; what Prepare returns is its work.
begun(Name, Prepare) ->
    Caller = self(),
    Pid = spawn(fun() ->
                        register(Name, self()),
                        Work = Prepare(),
                        Caller ! {self(), ready},
                        Work()
                end),
    receive {Pid, ready} -> ok end.

gone(Name) ->
    case whereis(Name) of
        undefined ->
            ok;
        Pid ->
            Monitor = monitor(process, Pid),
            exit(Pid, kill),
            receive {'DOWN', Monitor, _, _, _} -> ok end
    end.

ask(Name) ->
    Reference = monitor(process, Name),
    Name ! {ask, self(), Reference},
    receive
        {Reference, Answer} -> demonitor(Reference, [flush]), Answer;
        {'DOWN', Reference, _, _, Why} -> error({Name, Why})
    end.

%% ---- sending ------------------------------------------------------------------------------------

senders(Each) ->
    receive
        {ask, From, Reference} ->
            From ! {Reference, [{Peer, ask_sender(Sender)} || {Peer, Sender} <- Each]}
    end.

ask_sender(Sender) ->
    Sender ! {stop, self()},
    receive {Sender, Sent} -> Sent end.

sender(Peer, #{every_ms := EveryMs} = Options) ->
    %% Not all at the same moment.
    sending(Peer, Options, 1, 1, now_ms() + rand:uniform(EveryMs)).

sending(Peer, #{every_ms := EveryMs} = Options, Turn, Next, DueMs) ->
    receive
        {stop, From} ->
            send(Peer, Next, 0),
            From ! {self(), Next}
    after max(0, DueMs - now_ms()) ->
            #{burst := Burst, burst_every := BurstEvery,
              large_bytes := Bytes, large_every := LargeEvery} = Options,
            Count = case Turn rem BurstEvery of 0 -> Burst; _ -> 1 end,
            Size = case Turn rem LargeEvery of 0 -> Bytes; _ -> 0 end,
            Last = Next + Count - 1,
            lists:foreach(fun(Number) -> send(Peer, Number, Size) end, lists:seq(Next, Last)),
            %% A machine that stood still is not made up for.
            sending(Peer, Options, Turn + 1, Last + 1, max(DueMs + EveryMs, now_ms()))
    end.

send(Peer, Number, Bytes) ->
    Payload = payload(Number, Bytes),
    _ = erlang:send({?RECEIVER, Peer}, {?MODULE, node(), Number, Payload}, [noconnect]),
    ok.

payload(Number, Bytes) ->
    binary:copy(<<Number:32>>, Bytes div 4).

%% ---- receiving ----------------------------------------------------------------------------------

receiver(States) ->
    receive
        {?MODULE, Peer, Number, Payload} ->
            Now = now_ms(),
            Whole = Payload =:= payload(Number, byte_size(Payload)),
            State = maps:get(Peer, States, new(Now)),
            receiver(States#{Peer => took(Number, Whole, Now, State)});
        {ask, From, Reference} ->
            From ! {Reference, States},
            receiver(States)
    end.

new(Now) ->
    #{next => 1, received => 0, missing => #{}, reordered => 0, duplicates => 0, spoiled => 0,
      last_ms => Now, longest_ms => 0}.

took(Number, Whole, Now, #{received := Received, spoiled := Spoiled, last_ms := Last,
                           longest_ms := Longest} = State) ->
    Bad = case Whole of true -> 0; false -> 1 end,
    place(Number, State#{received := Received + 1, spoiled := Spoiled + Bad, last_ms := Now,
                         longest_ms := max(Longest, Now - Last)}).

place(Next, #{next := Next} = State) ->
    State#{next := Next + 1};
place(Number, #{next := Next, missing := Missing} = State) when Number > Next ->
    true = map_size(Missing) + Number - Next < ?MAX_MISSING,
    Absent = maps:from_list([{N, []} || N <- lists:seq(Next, Number - 1)]),
    State#{next := Number + 1, missing := maps:merge(Missing, Absent)};
place(Number, #{missing := Missing, reordered := Reordered, duplicates := Duplicates} = State) ->
    case is_map_key(Number, Missing) of
        true -> State#{missing := maps:remove(Number, Missing), reordered := Reordered + 1};
        false -> State#{duplicates := Duplicates + 1}
    end.

%% ---- links --------------------------------------------------------------------------------------

witness(Seen) ->
    receive
        {Kind, Peer, Facts} when Kind =:= nodeup; Kind =:= nodedown ->
            Why = proplists:get_value(nodedown_reason, Facts),
            witness([{Kind, Peer, os:system_time(millisecond), Why} | Seen]);
        {ask, From, Reference} ->
            From ! {Reference, lists:reverse(Seen)},
            witness(Seen)
    end.

now_ms() ->
    erlang:monotonic_time(millisecond).

%% ---- JSON ---------------------------------------------------------------------------------------

object(Fields) ->
    lists:flatten([${, lists:join($,, [[quoted(Key), $:, Value] || {Key, Value} <- Fields]), $}]).

array(Values) ->
    lists:flatten([$[, lists:join($,, Values), $]]).

quoted(Atom) when is_atom(Atom) ->
    quoted(atom_to_list(Atom));
quoted(Text) ->
    [$", [Char || Char <- lists:flatten(Text),
                  Char >= $\s, Char < 127, Char =/= $", Char =/= $\\], $"].
