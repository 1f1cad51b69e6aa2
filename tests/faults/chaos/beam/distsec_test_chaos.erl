%% What the chaos test has inside the nodes, and inside the intruders (tests/faults/chaos).
%%
%% In a node: a witness that writes down each link that comes and goes, by itself and at once, into a
%% file of its own outside of the state directory; and load: numbered messages to every node that is
%% linked, and a look at the numbers of those that come. Within one link none may be missing, and
%% never does one come twice or late. And, asked for it, a flood of events: as many at once as the
%% orchestrator keeps, so that what it weighs can be compared with what it weighed before.
%%
%% In an intruder: a process that dials the nodes without end, tries to have each write a file, and
%% counts what it got.
-module(distsec_test_chaos).

-export([witness/1, counts/0, within/0, weighed/0, flood/1, hammer/3, pause/1, hammered/0, place/2]).

-define(RECEIVER, distsec_test_chaos).
-define(HAMMER, distsec_test_chaos_hammer).
-define(CALL_MS, 1000).
-define(PATIENCE_MS, 60_000). % of who asks: the machine may be busy, and one dial may take its 7 s

%% Of one sender: its process, the last number that came, and whether a link has come up since.
-type heard() :: #{from := pid(), last := non_neg_integer(), fresh := boolean()}.
-type verdict() :: ok | {missing, pos_integer()} | again.

%% ---- in a node ----------------------------------------------------------------------------------

%% For -run: the witness's file, and how often each peer is sent a message.
-spec witness([string()]) -> ok.
witness([Path, EveryMs]) ->
    Starter = self(),
    Pid = spawn(fun() -> witness(Path, list_to_integer(EveryMs), Starter) end),
    receive {Pid, ready} -> ok end.

witness(Path, EveryMs, Starter) ->
    register(?RECEIVER, self()),
    {ok, File} = file:open(Path, [append, raw]),
    note(File, "boot", os:getpid()),
    ok = net_kernel:monitor_nodes(true, [{node_type, all}, nodedown_reason]),
    [note(File, "up", Node) || Node <- nodes(connected)],
    Starter ! {self(), ready},
    erlang:send_after(EveryMs, self(), send),
    loop(#{file => File, every_ms => EveryMs, sent => #{}, heard => #{},
           received => 0, lost => 0}).

loop(#{file := File, heard := Heard, received := Received, lost := Lost} = State) ->
    receive
        {nodeup, Node, _} ->
            note(File, "up", Node),
            loop(State#{heard := freshened(Node, Heard)});
        {nodedown, Node, Facts} ->
            Why = proplists:get_value(nodedown_reason, Facts),
            note(File, "down", [atom_to_list(Node), $\s, io_lib:format("~0p", [Why])]),
            loop(State);
        {?MODULE, Node, From, Number} ->
            {Verdict, Next} = place({From, Number}, maps:get(Node, Heard, undefined)),
            Missed = told(Verdict, File, Node, Number),
            loop(State#{heard := Heard#{Node => Next}, received := Received + 1,
                        lost := Lost + Missed});
        send ->
            erlang:send_after(maps:get(every_ms, State), self(), send),
            loop(State#{sent := lists:foldl(fun send/2, maps:get(sent, State), nodes())});
        {counts, From, Reference} ->
            Sent = lists:sum(maps:values(maps:get(sent, State))),
            From ! {Reference, {Sent, Received, Lost}},
            loop(State)
    end.

freshened(Node, Heard) ->
    case Heard of
        #{Node := One} -> Heard#{Node := One#{fresh := true}};
        #{} -> Heard
    end.

%% What a number is worth after what was heard before. Pure.
-spec place({pid(), pos_integer()}, heard() | undefined) -> {verdict(), heard()}.
place({From, Number}, #{from := From, last := Last} = Heard) when Number =< Last ->
    {again, Heard#{fresh := false}};
place({From, Number}, #{from := From, last := Last, fresh := false} = Heard)
  when Number > Last + 1 ->
    {{missing, Number - Last - 1}, Heard#{last := Number}};
place({From, Number}, _) ->
    {ok, #{from => From, last => Number, fresh => false}}.

told(ok, _, _, _) ->
    0;
told({missing, Count}, File, Node, Number) ->
    note(File, "missing", [atom_to_list(Node), io_lib:format(" ~b before ~b", [Count, Number])]),
    Count;
told(again, File, Node, Number) ->
    note(File, "again", [atom_to_list(Node), io_lib:format(" ~b", [Number])]),
    0.

%% Dials nobody. What cannot be sent at once is not counted as sent.
send(Node, Sent) ->
    Number = maps:get(Node, Sent, 0) + 1,
    Message = {?MODULE, node(), self(), Number},
    case erlang:send({?RECEIVER, Node}, Message, [noconnect, nosuspend]) of
        ok -> Sent#{Node => Number};
        _ -> Sent
    end.

note(File, Kind, What) when is_atom(What) ->
    note(File, Kind, atom_to_list(What));
note(File, Kind, What) ->
    Ms = integer_to_list(os:system_time(millisecond)),
    ok = file:write(File, [Ms, $\s, Kind, $\s, What, $\n]).

%% Messages since the VM started: sent, received, missing within a link.
-spec counts() -> {non_neg_integer(), non_neg_integer(), non_neg_integer()}.
counts() ->
    Reference = make_ref(),
    ?RECEIVER ! {counts, self(), Reference},
    receive {Reference, Counts} -> Counts after ?PATIENCE_MS -> error(timeout) end.

%% What this VM says of itself, as JSON: its links, its own counts, and what it holds.
-spec within() -> string().
within() ->
    #{refusals := Refusals} = distsec_count:report(),
    Number = fun erlang:integer_to_list/1,
    {Sent, Received, Lost} = counts(),
    object([{launch, quoted(binary_to_list(distsec_guard:launch()))},
            {links, array([quoted(atom_to_list(Node)) || Node <- lists:sort(nodes(connected))])},
            {critical, Number(distsec_ring:sequence(critical))},
            {refusals, Number(distsec_ring:sequence(refusals))},
            {dropped_critical, Number(distsec_ring:dropped(critical))},
            {dropped_refusals, Number(distsec_ring:dropped(refusals))},
            {counts, array([array([quoted(atom_to_list(D)), quoted(atom_to_list(R)), Number(N)])
                            || {D, R, N} <- Refusals])},
            {memory, Number(erlang:memory(total))},
            {processes, Number(erlang:system_info(process_count))},
            {ports, Number(erlang:system_info(port_count))},
            {atoms, Number(erlang:system_info(atom_count))},
            {tables, Number(erlang:system_info(ets_count))},
            {sent, Number(Sent)}, {received, Number(Received)}, {lost, Number(Lost)}]).

%% As within/0, with nothing in it that only waits to be collected.
-spec weighed() -> string().
weighed() ->
    _ = [erlang:garbage_collect(Pid) || Pid <- processes()],
    within().

%% So many events of each of the three kinds that the orchestrator keeps apart (distsec/observe/bus.py),
%% told as the guard tells of what it sees: counted, and put on their lanes.
-spec flood(pos_integer()) -> ok.
flood(Count) ->
    lists:foreach(
      fun(N) ->
              Number = integer_to_binary(N),
              distsec_report:refusal(in, bad_cookie,
                                     #{address => distsec_report:address({{127, 0, 0, 1}, N}),
                                       identity => <<"spiffe://chaos/node/127.0.0.1/flood-", Number/binary>>,
                                       serial => <<"4096000000000000000000000000000000", Number/binary>>,
                                       claimed => <<"flood-", Number/binary, "@127.0.0.1">>,
                                       detail => <<"one of a flood, number ", Number/binary>>}),
              distsec_report:critical(clock_stepped, #{reason => ahead, seconds => N}),
              distsec_report:critical(policy_rejected, #{reason => signature})
      end, lists:seq(1, Count)).

%% ---- in an intruder -----------------------------------------------------------------------------

%% Dials Victims in turn, one each EveryMs; each is to write a file of its name into Directory.
-spec hammer([node()], pos_integer(), string()) -> ok.
hammer(Victims, EveryMs, Directory) ->
    Starter = self(),
    Pid = spawn(fun() ->
                        register(?HAMMER, self()),
                        ok = net_kernel:monitor_nodes(true, [{node_type, all}]),
                        Starter ! {self(), ready},
                        hammering(Victims, [], EveryMs, Directory, {0, 0, 0}, true)
                end),
    receive {Pid, ready} -> ok end.

hammering([], Done, EveryMs, Directory, Counts, On) ->
    hammering(lists:reverse(Done), [], EveryMs, Directory, Counts, On);
hammering([Victim | Rest] = All, Done, EveryMs, Directory, {Tried, Linked, Ups} = Counts, On) ->
    receive
        {nodeup, _, _} ->
            hammering(All, Done, EveryMs, Directory, {Tried, Linked, Ups + 1}, On);
        {nodedown, _, _} ->
            hammering(All, Done, EveryMs, Directory, Counts, On);
        {on, Next} ->
            hammering(All, Done, EveryMs, Directory, Counts, Next);
        {counts, From, Reference} ->
            From ! {Reference, Counts},
            hammering(All, Done, EveryMs, Directory, Counts, On)
    after EveryMs ->
            case On of
                true ->
                    More = case dial(Victim, Directory) of true -> 1; false -> 0 end,
                    hammering(Rest, [Victim | Done], EveryMs, Directory,
                              {Tried + 1, Linked + More, Ups}, On);
                false ->
                    hammering(All, Done, EveryMs, Directory, Counts, On)
            end
    end.

%% Whether a link came up. The file is asked for in any case where it did, and is looked for outside.
dial(Victim, Directory) ->
    case net_kernel:connect_node(Victim) of
        true ->
            File = filename:join(Directory, atom_to_list(Victim)),
            _ = try erpc:call(Victim, file, write_file, [File, <<>>], ?CALL_MS)
                catch _:_ -> not_done
                end,
            true;
        _ ->
            false
    end.

-spec pause(boolean()) -> ok.
pause(Paused) ->
    ?HAMMER ! {on, not Paused},
    ok.

%% As JSON: [tried, linked, nodeups].
-spec hammered() -> string().
hammered() ->
    Reference = make_ref(),
    ?HAMMER ! {counts, self(), Reference},
    receive
        {Reference, Counts} -> array([integer_to_list(N) || N <- tuple_to_list(Counts)])
    after ?PATIENCE_MS -> error(timeout)
    end.

%% ---- JSON ---------------------------------------------------------------------------------------

object(Fields) ->
    lists:flatten([${, lists:join($,, [[quoted(atom_to_list(Key)), $:, Value]
                                       || {Key, Value} <- Fields]), $}]).

array(Values) ->
    lists:flatten([$[, lists:join($,, Values), $]]).

quoted(Text) ->
    [$", [Char || Char <- Text, Char >= $\s, Char < 127, Char =/= $", Char =/= $\\], $"].
