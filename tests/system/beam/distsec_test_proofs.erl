%% How long the links of this node have lived on which certificate of their peer: looked at every
%% 20 ms from the inside, by nothing that the product knows of (tests/system/short_lives.py).
-module(distsec_test_proofs).

-export([start/0, lives/0]).

-define(EVERY_MS, 20).

-spec start() -> ok.
start() ->
    Caller = self(),
    Pid = spawn(fun() ->
                        register(?MODULE, self()),
                        process_flag(priority, high),
                        Caller ! {self(), ready},
                        watch(#{})
                end),
    receive {Pid, ready} -> ok end.

%% A row for each peer and each certificate that a link with it was known by, as JSON: peer, serial,
%% end of the certificate (Unix seconds), when the link was first and last up with it (Unix ms).
-spec lives() -> string().
lives() ->
    Reference = monitor(process, ?MODULE),
    ?MODULE ! {ask, self(), Reference},
    receive
        {Reference, Lives} ->
            demonitor(Reference, [flush]),
            Rows = [io_lib:format("[\"~s\",\"~s\",~b,~b,~b]", [Peer, Serial, NotAfter, First, Last])
                    || {{Peer, Serial, NotAfter}, {First, Last}} <- maps:to_list(Lives)],
            lists:flatten([$[, lists:join($,, Rows), $]]);
        {'DOWN', Reference, _, _, Why} -> error(Why)
    end.

watch(Lives) ->
    receive
        {ask, From, Reference} ->
            From ! {Reference, Lives},
            watch(Lives)
    after ?EVERY_MS ->
            %% In this order: a link counts for when it was surely still up.
            Now = os:system_time(millisecond),
            Up = [atom_to_binary(Node, utf8) || Node <- nodes(connected)],
            watch(lists:foldl(
                    fun(#{peer := Peer, serial := Serial, not_after := NotAfter}, Acc)
                          when is_binary(Serial) ->
                            case lists:member(Peer, Up) of
                                true -> maps:update_with({Peer, Serial, NotAfter},
                                                         fun({First, _}) -> {First, Now} end,
                                                         {Now, Now}, Acc);
                                false -> Acc
                            end;
                       (_, Acc) -> Acc
                    end, Lives, distsec_links:all()))
    end.
