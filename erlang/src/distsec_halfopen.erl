%% Which half-open handshake gives way when there are too many (pure). Limits hold for each source and
%% in all. Within the source that holds most the oldest goes first, and one that has shown a certificate
%% which the policy admits only after all those that have not: who floods pushes itself out.
-module(distsec_halfopen).

-export([new/2, add/4, remove/3, size/1, greediest/1, source/1]).

-export_type([state/0, source/0]).

-type id() :: pos_integer(). % ascending with age: the smallest is the oldest
-type source() :: {v4, inet:ip4_address()} | {v6, {0..65535, 0..65535, 0..65535, 0..65535}} | unknown.
-opaque state() :: #{total := pos_integer(), per_source := pos_integer(), count := non_neg_integer(),
                     sources := #{source() => gb_sets:set(id())}}.

-spec new(Total :: pos_integer(), PerSource :: pos_integer()) -> state().
new(Total, PerSource) ->
    #{total => Total, per_source => PerSource, count => 0, sources => #{}}.

%% Adds one, and says which of those that were there before must go for it. Admitted tells whether a
%% handshake has shown an admitted certificate.
-spec add(source(), id(), Admitted :: fun((id()) -> boolean()), state()) -> {keep | {drop, id()}, state()}.
add(Source, Id, Admitted, #{count := Count, sources := Sources} = State) ->
    Own = maps:get(Source, Sources, gb_sets:new()),
    #{total := Total, per_source := PerSource} = State,
    Victim = case gb_sets:size(Own) >= PerSource of
                 true -> {Source, victim(Own, Admitted)};
                 false when Count >= Total ->
                     {Greediest, Ids} = greediest(State),
                     {Greediest, victim(Ids, Admitted)};
                 false -> none
             end,
    Added = State#{count := Count + 1, sources := Sources#{Source => gb_sets:add(Id, Own)}},
    case Victim of
        none -> {keep, Added};
        {Of, Dropped} -> {{drop, Dropped}, remove(Of, Dropped, Added)}
    end.

victim(Ids, Admitted) ->
    first_not_admitted(gb_sets:next(gb_sets:iterator(Ids)), Admitted, gb_sets:smallest(Ids)).

first_not_admitted({Id, Iterator}, Admitted, Oldest) ->
    case Admitted(Id) of
        false -> Id;
        true -> first_not_admitted(gb_sets:next(Iterator), Admitted, Oldest)
    end;
first_not_admitted(none, _, Oldest) ->
    Oldest.

-spec remove(source(), id(), state()) -> state().
remove(Source, Id, #{count := Count, sources := Sources} = State) ->
    case Sources of
        #{Source := Ids} ->
            case gb_sets:is_element(Id, Ids) of
                true ->
                    Left = gb_sets:delete(Id, Ids),
                    State#{count := Count - 1,
                           sources := case gb_sets:is_empty(Left) of
                                          true -> maps:remove(Source, Sources);
                                          false -> Sources#{Source := Left}
                                      end};
                false -> State
            end;
        _ -> State
    end.

-spec size(state()) -> non_neg_integer().
size(#{count := Count}) ->
    Count.

%% The source that holds most; of several the one with the oldest. Only for a state that is not empty.
-spec greediest(state()) -> {source(), gb_sets:set(id())}.
greediest(#{sources := Sources}) ->
    {_, _, Source} = maps:fold(fun(Source, Ids, Best) ->
                                       max({gb_sets:size(Ids), -gb_sets:smallest(Ids), Source}, Best)
                               end, {0, 0, unknown}, Sources),
    {Source, maps:get(Source, Sources)}.

%% Whom an address is counted for: an IPv4 address, or the /64 of an IPv6 address, since whoever has one
%% address of it has them all. An IPv4 address in IPv6 clothes is itself (RFC 4291, 2.5.5.2).
-spec source(term()) -> source().
source({{_, _, _, _} = Ip, _Port}) -> {v4, Ip};
source({{0, 0, 0, 0, 0, 16#ffff, High, Low}, _Port}) ->
    {v4, {High bsr 8, High band 255, Low bsr 8, Low band 255}};
source({{A, B, C, D, _, _, _, _}, _Port}) -> {v6, {A, B, C, D}};
source(_) -> unknown.
