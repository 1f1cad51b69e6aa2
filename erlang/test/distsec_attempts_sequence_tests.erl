%% Whatever becomes of an attempt, by several processes and in any order, up to its end.
-module(distsec_attempts_sequence_tests).
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-export([prop_each_attempt_is_told_of_at_most_once_and_leaves_nothing/0]).

-import(distsec_test_registry, [await/1, await_clean/0, begin_registry/0, end_registry/1, facts/2,
                                finish/2, told/0, worker/0]).

step() ->
    oneof([{learn, oneof([serial, claimed])}, {stage, oneof([admitted, named])}, {stage, up},
           {refuse, oneof([revoked, closed, malformed])}, told, handover, restart, deadline]).

ending() ->
    oneof([normal, killed, setup_timer_timeout, remarked, {shutdown, refused}, {shutdown, x},
           {recv_challenge_reply_failed, bad_cookie}]).

attempt() ->
    {oneof([in, out]), list(step()), ending()}.

prop_each_attempt_is_told_of_at_most_once_and_leaves_nothing() ->
    ?FORALL(Attempts, ?SUCHTHAT(L, list(attempt()), length(L) =< 20),
            begin
                Holder = begin_registry(),
                try
                    Expected = lists:append(
                                 lists:zipwith(fun(N, Attempt) -> live(integer_to_binary(N), Attempt, Holder) end,
                                               lists:seq(1, length(Attempts)), Attempts)),
                    await_clean(),
                    lists:sort(told()) =:= lists:sort(Expected)
                after
                    end_registry(Holder)
                end
            end).

%% Lives an attempt through; what must be told of it.
live(Name, {Direction, Steps, Ending}, Holder) ->
    Register = case Direction of in -> inbound; out -> outbound end,
    Pid = worker(),
    {ok, Id} = distsec_attempts:Register(Pid, facts(Direction, Name)),
    {Owner, Told, Stage} = lists:foldl(fun(Step, State) -> step(Step, Id, Holder, State) end,
                                       {Pid, untold, tls}, Steps),
    finish(Owner, Ending),
    %% A registry that is not there then finds it gone later, and does not know why.
    await(fun() -> distsec_attempts:facts(Id) =:= undefined end),
    case Told of
        told -> [];
        {told, Reason} -> [{Name, Reason}];
        untold when Stage =:= up -> [];
        untold ->
            case distsec_gate:ending(Ending, Stage, facts(Direction, Name)) of
                benign -> [];
                {_, Reason, _} -> [{Name, Reason}]
            end
    end.

step({learn, Key}, Id, _, State) ->
    ok = distsec_attempts:learn(Id, #{Key => <<"x">>}),
    State;
step({stage, Stage}, Id, _, {Owner, Told, _}) ->
    ok = distsec_attempts:stage(Id, Stage),
    {Owner, Told, Stage};
step({refuse, Reason}, Id, _, {Owner, Told, Stage}) ->
    ok = distsec_attempts:refuse(Id, Reason, #{}),
    {Owner, case Told of untold -> {told, Reason}; _ -> Told end, Stage};
step(told, Id, _, {Owner, Told, Stage}) ->
    ok = distsec_attempts:told(Id),
    {Owner, case Told of untold -> told; _ -> Told end, Stage};
step(handover, Id, _, {Owner, Told, Stage}) ->
    Next = worker(),
    case distsec_attempts:handover(Id, Next) of
        ok ->
            finish(Owner, {recv_challenge_reply_failed, bad_cookie}), % nobody's business any more
            {Next, Told, Stage};
        refused when Told =/= untold -> % on a busy machine its time to go was over already
            finish(Next, normal),
            {Owner, Told, Stage}
    end;
step(restart, _, Holder, State) ->
    exit(whereis(distsec_attempts), kill),
    await(fun() -> whereis(distsec_attempts) =:= undefined end),
    Holder ! {restart, self()},
    receive {restarted, _} -> State end;
step(deadline, Id, _, {Owner, Told, Stage}) ->
    distsec_attempts ! {deadline, Id},
    _ = sys:get_state(distsec_attempts),
    case {Stage, Told} of
        {up, _} -> {Owner, Told, Stage};
        {_, untold} -> {Owner, {told, handshake_timeout}, Stage};
        _ -> {Owner, Told, Stage}
    end.

properties_hold_test_() ->
    {timeout, 120, ?_assert(proper:quickcheck(prop_each_attempt_is_told_of_at_most_once_and_leaves_nothing(),
                                              [quiet, {numtests, 100}]))}.
