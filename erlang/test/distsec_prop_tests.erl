%% Properties. Found and run by scripts/erlang-test (PropEr); the EUnit wrapper runs them too.
-module(distsec_prop_tests).
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-export([prop_glob_agrees_with_a_regular_expression/0, prop_a_ring_shows_the_newest_in_order/0,
         prop_lanes_do_not_touch_each_other/0, prop_no_document_without_the_key_is_taken/0,
         prop_no_frame_makes_an_atom_or_a_crash/0]).

%% Of letters few enough that matches happen.
name() -> list(oneof([$a, $b, $-])).
glob() -> list(oneof([$a, $b, $-, $*])).

prop_glob_agrees_with_a_regular_expression() ->
    ?FORALL({Glob, Head}, {glob(), name()},
            begin
                Pattern = list_to_binary(Glob ++ "@h"),
                Regex = ["\\A", [case C of $* -> ".*"; _ -> C end || C <- Glob], "\\z"],
                Expected = Head =/= [] andalso re:run(Head, Regex, [{capture, none}]) =:= match,
                Expected =:= distsec_policy:glob_matches(Pattern, list_to_binary(Head ++ "@h"))
            end).

prop_a_ring_shows_the_newest_in_order() ->
    ?FORALL({Puts, Acked}, {range(0, 20000), range(0, 20000)},
            begin
                ok = distsec_ring:new(),
                [distsec_ring:put(refusals, #{}) || _ <- lists:seq(1, Puts)],
                ok = distsec_ring:acknowledge(refusals, Acked),
                {Events, Next} = distsec_ring:read(refusals, 0, 30000, pass),
                First = max(min(Acked, Puts), Puts - distsec_ring:capacity(refusals)) + 1,
                [N || {N, _} <- Events] =:= lists:seq(First, Puts) andalso Next =:= Puts
                    andalso distsec_ring:dropped(refusals)
                        =:= max(0, Puts - distsec_ring:capacity(refusals))
            end).

prop_lanes_do_not_touch_each_other() ->
    ?FORALL(Lanes, list(oneof([critical, refusals])),
            begin
                ok = distsec_ring:new(),
                [distsec_ring:put(Lane, #{lane => Lane}) || Lane <- Lanes],
                lists:all(fun(Lane) ->
                                  {Events, _} = distsec_ring:read(Lane, 0, 100000, 0),
                                  length(Events) =:= length([L || L <- Lanes, L =:= Lane])
                                      andalso lists:all(fun({_, #{lane := L}}) -> L =:= Lane end,
                                                        Events)
                          end, [critical, refusals])
            end).

prop_no_document_without_the_key_is_taken() ->
    {Public, _} = distsec_policy_tests:key(),
    ?FORALL(Bytes, oneof([binary(), ?LET(B, binary(), <<"{distsec_policy, #{}}.\n{signature, <<\"",
                                                       (base64:encode(B))/binary, "\">>}.\n">>)]),
            element(1, distsec_policy:parse(Bytes, Public)) =:= error).

prop_no_frame_makes_an_atom_or_a_crash() ->
    error = distsec_port:decode(<<131>>), % loads what there is to load
    ?FORALL(Bytes, oneof([binary(), ?LET(B, binary(), <<131, B/binary>>)]),
            begin
                Before = erlang:system_info(atom_count),
                case distsec_port:decode(Bytes) of
                    {ok, _} -> ok;
                    error -> ok
                end,
                erlang:system_info(atom_count) =:= Before
            end).

properties_hold_test_() ->
    {timeout, 120,
     [?_assert(proper:quickcheck(Property, [quiet, {numtests, 100}]))
      || Property <- [prop_glob_agrees_with_a_regular_expression(),
                      prop_a_ring_shows_the_newest_in_order(),
                      prop_lanes_do_not_touch_each_other(),
                      prop_no_document_without_the_key_is_taken(),
                      prop_no_frame_makes_an_atom_or_a_crash()]]}.
