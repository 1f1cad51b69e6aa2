-module(distsec_halfopen_tests).
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-export([prop_the_bounds_hold_and_who_floods_gives_way/0, prop_an_address_has_one_source/0]).

-define(TOTAL, 8).
-define(OF_SOURCE, 3).

nobody(_) -> false.

add(Source, Id, State) ->
    distsec_halfopen:add(Source, Id, fun nobody/1, State).

%% Adds ids 1, 2, … of these sources, none of which may be dropped.
filled(Sources, State) ->
    lists:foldl(fun({Id, Source}, S) -> {keep, Next} = add(Source, Id, S), Next end,
                State, lists:enumerate(Sources)).

the_oldest_of_its_own_source_goes_first_test() ->
    State = filled([a, a, b, a], distsec_halfopen:new(?TOTAL, ?OF_SOURCE)),
    ?assertMatch({{drop, 1}, _}, add(a, 5, State)),
    ?assertMatch({keep, _}, add(b, 5, State)).

in_all_the_oldest_of_the_greediest_source_goes_test() ->
    State = filled([a, b, b, b, c, c, d, d], distsec_halfopen:new(?TOTAL, ?OF_SOURCE)),
    ?assertMatch({{drop, 2}, _}, add(e, 9, State)).

of_equally_greedy_sources_the_one_with_the_oldest_gives_way_test() ->
    State = filled([a, b, b, a], distsec_halfopen:new(4, ?OF_SOURCE)),
    ?assertMatch({{drop, 1}, _}, add(c, 5, State)).

%% A genuine node behind the address of a flood has shown its certificate: those that have not go first.
one_that_has_shown_a_certificate_goes_last_test() ->
    State = filled([a, a, a], distsec_halfopen:new(?TOTAL, ?OF_SOURCE)),
    Admitted = fun(Ids) -> fun(Id) -> lists:member(Id, Ids) end end,
    ?assertMatch({{drop, 2}, _}, distsec_halfopen:add(a, 4, Admitted([1]), State)),
    ?assertMatch({{drop, 3}, _}, distsec_halfopen:add(a, 4, Admitted([1, 2]), State)),
    ?assertMatch({{drop, 1}, _}, distsec_halfopen:add(a, 4, Admitted([1, 2, 3]), State)).

what_was_never_there_is_not_removed_test() ->
    State = filled([a, b], distsec_halfopen:new(?TOTAL, ?OF_SOURCE)),
    [?assertEqual(State, distsec_halfopen:remove(Source, Id, State)) || {Source, Id} <- [{a, 2}, {c, 1}]],
    Less = distsec_halfopen:remove(a, 1, State),
    ?assertEqual(Less, distsec_halfopen:remove(a, 1, Less)),
    ?assertEqual(1, distsec_halfopen:size(Less)).

%% ---- sources ------------------------------------------------------------------------------------

whoever_has_a_64_has_all_of_its_addresses_test() ->
    Source = fun(Ip) -> distsec_halfopen:source({Ip, 40112}) end,
    ?assertEqual({v6, {16#2001, 16#db8, 0, 1}}, Source({16#2001, 16#db8, 0, 1, 0, 0, 0, 1})),
    ?assertEqual(Source({16#2001, 16#db8, 0, 1, 0, 0, 0, 1}),
                 Source({16#2001, 16#db8, 0, 1, 16#ffff, 1, 2, 16#ffff})),
    ?assertNotEqual(Source({16#2001, 16#db8, 0, 1, 0, 0, 0, 1}), Source({16#2001, 16#db8, 0, 2, 0, 0, 0, 1})).

an_ipv4_address_in_ipv6_clothes_is_itself_test() ->
    ?assertEqual({v4, {192, 0, 2, 255}},
                 distsec_halfopen:source({{0, 0, 0, 0, 0, 16#ffff, 16#c000, 16#02ff}, 1})),
    ?assertEqual(distsec_halfopen:source({{192, 0, 2, 255}, 2}),
                 distsec_halfopen:source({{0, 0, 0, 0, 0, 16#ffff, 16#c000, 16#02ff}, 1})),
    ?assertMatch({v6, _}, distsec_halfopen:source({{0, 0, 0, 0, 0, 0, 16#c000, 16#02ff}, 1})).

a_peer_without_an_address_is_counted_all_the_same_test() ->
    ?assertEqual(unknown, distsec_halfopen:source(undefined)),
    State = filled(lists:duplicate(?OF_SOURCE, unknown), distsec_halfopen:new(?TOTAL, ?OF_SOURCE)),
    ?assertMatch({{drop, 1}, _}, add(unknown, 9, State)).

%% ---- properties ---------------------------------------------------------------------------------

step() ->
    frequency([{4, {add, oneof([a, b, c, d, e]), boolean()}},
               {1, {remove, range(1, 40)}},
               {1, {admit, range(1, 40)}}]).

%% Against a list of {Id, Source, Admitted}, oldest first.
prop_the_bounds_hold_and_who_floods_gives_way() ->
    ?FORALL(Steps, list(step()),
            try
                _ = lists:foldl(fun take/2, {1, [], distsec_halfopen:new(?TOTAL, ?OF_SOURCE)}, Steps),
                true
            catch
                error:{Wrong, Model} -> ?WHENFAIL(io:format("~p ~p~n", [Wrong, Model]), false)
            end).

take({add, Source, Admitted}, {Id, Model, State}) ->
    Fun = fun(Of) -> lists:keyfind(Of, 1, Model) =:= {Of, source_of(Of, Model), true} end,
    {Verdict, Next} = distsec_halfopen:add(Source, Id, Fun, State),
    Left = case Verdict of
               keep ->
                   expect(count(Source, Model) < ?OF_SOURCE andalso length(Model) < ?TOTAL, kept, Model),
                   Model;
               {drop, Victim} ->
                   expect(Victim =:= victim(Source, Model), {dropped, Victim}, Model),
                   lists:keydelete(Victim, 1, Model)
           end,
    holds({Id + 1, Left ++ [{Id, Source, Admitted}], Next});
take({remove, Of}, {Id, Model, State}) ->
    Next = distsec_halfopen:remove(source_of(Of, Model), Of, State),
    holds({Id, lists:keydelete(Of, 1, Model), Next});
take({admit, Of}, {Id, Model, State}) ->
    {Id, [{I, S, A orelse I =:= Of} || {I, S, A} <- Model], State}.

holds({_, Model, State} = Now) ->
    expect(distsec_halfopen:size(State) =:= length(Model), size, Model),
    expect(length(Model) =< ?TOTAL, total, Model),
    [expect(count(Source, Model) =< ?OF_SOURCE, Source, Model) || {_, Source, _} <- Model],
    Now.

victim(Source, Model) ->
    Of = case count(Source, Model) >= ?OF_SOURCE of
             true -> Source;
             false -> greediest(Model)
         end,
    case {[I || {I, S, false} <- Model, S =:= Of], [I || {I, S, _} <- Model, S =:= Of]} of
        {[Oldest | _], _} -> Oldest;
        {[], [Oldest | _]} -> Oldest
    end.

greediest(Model) ->
    Most = lists:max([count(Source, Model) || {_, Source, _} <- Model]),
    hd([Source || {_, Source, _} <- Model, count(Source, Model) =:= Most]).

count(Source, Model) ->
    length([Id || {Id, S, _} <- Model, S =:= Source]).

source_of(Id, Model) ->
    case lists:keyfind(Id, 1, Model) of
        {_, Source, _} -> Source;
        false -> nowhere
    end.

expect(true, _, _) -> ok;
expect(false, Wrong, Model) -> error({Wrong, Model}).

group() -> range(0, 65535).

prop_an_address_has_one_source() ->
    ?FORALL({{A, B, C, D}, Host, Port}, {{group(), group(), group(), group()},
                                         {group(), group(), group(), group()}, range(0, 65535)},
            begin
                {E, F, G, H} = Host,
                case distsec_halfopen:source({{A, B, C, D, E, F, G, H}, Port}) of
                    {v6, {A, B, C, D}} -> true;
                    {v4, _} -> {A, B, C, D, E, F} =:= {0, 0, 0, 0, 0, 16#ffff}
                end
            end).

properties_hold_test_() ->
    [{timeout, 60, ?_assert(proper:quickcheck(Property, [quiet, {numtests, 500}]))}
     || Property <- [prop_the_bounds_hold_and_who_floods_gives_way(), prop_an_address_has_one_source()]].
