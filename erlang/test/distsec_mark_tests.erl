%% The high-water mark of the policy: what is read, what is written, and what it keeps from a node.
-module(distsec_mark_tests).
-include_lib("eunit/include/eunit.hrl").
-include_lib("kernel/include/file.hrl").

in_a_directory_test_() ->
    {foreach, fun directory/0, fun file:del_dir_r/1,
     [fun(D) -> {T, {timeout, 60, fun() -> Test(D) end}} end % each waits for the disk
      || {T, Test} <- [{"there is none at first", fun none/1},
                       {"it is raised and never lowered", fun raised/1},
                       {"it is private", fun private/1},
                       {"what is no mark is none, and is replaced", fun damaged/1},
                       {"a disk that does not take it is an error", fun full/1}]]}.

directory() ->
    Name = "mark-" ++ integer_to_list(erlang:unique_integer([positive])),
    ok = file:make_dir(Name),
    Name.

none(Directory) ->
    ?assertEqual(error, distsec_mark:read(Directory)).

raised(Directory) ->
    ?assertEqual(ok, distsec_mark:raise(Directory, 7)),
    ?assertEqual({ok, 7}, distsec_mark:read(Directory)),
    ?assertEqual(ok, distsec_mark:raise(Directory, 5)),
    ?assertEqual({ok, 7}, distsec_mark:read(Directory)),
    ?assertEqual(ok, distsec_mark:raise(Directory, 1 bsl 60)),
    ?assertEqual({ok, 1 bsl 60}, distsec_mark:read(Directory)),
    %% As distsec.beam.provision writes and reads it.
    ?assertEqual({ok, <<"distsec_mark 1 1152921504606846976\n">>},
                 file:read_file(filename:join(Directory, "policy.mark"))),
    ?assertEqual({ok, ["policy.mark"]}, file:list_dir(Directory)).

private(Directory) ->
    ok = distsec_mark:raise(Directory, 1),
    {ok, #file_info{mode = Mode}} = file:read_file_info(filename:join(Directory, "policy.mark")),
    ?assertEqual(8#600, Mode band 8#777).

damaged(Directory) ->
    Path = filename:join(Directory, "policy.mark"),
    lists:foreach(
      fun(Content) ->
              ok = file:write_file(Path, Content),
              ?assertEqual({Content, error}, {Content, distsec_mark:read(Directory)}),
              ?assertEqual(ok, distsec_mark:raise(Directory, 3)),
              ?assertEqual({ok, 3}, distsec_mark:read(Directory))
      end,
      [<<>>, <<"7">>, <<"distsec_mark 2 7\n">>, <<"distsec_mark 1 \n">>, <<"distsec_mark 1 -7\n">>,
       <<"distsec_mark 1 7x\n">>, <<"distsec_mark 1 7 7\n">>, <<"distsec_mark 1 16#7\n">>,
       <<"distsec_mark 1 ", (binary:copy(<<"9">>, 30))/binary, "\n">>, binary:copy(<<0>>, 100000)]).

full(Directory) ->
    ok = file:make_dir(filename:join(Directory, "policy.mark.new")),
    ?assertMatch({error, _}, distsec_mark:raise(Directory, 1)),
    ?assertEqual(error, distsec_mark:read(Directory)).

%% ---- what the guard makes of it ----------------------------------------------------------------

usable_test_() ->
    [?_assertMatch({Expected, _}, {usable(Generation, Guard, Mark), Case})
     || {Case, Generation, Guard, Mark, Expected} <-
            [{"as the orchestrator wrote it", 7, #{floor => 7}, {ok, 7}, ok},
             {"newer", 8, #{floor => 7}, {ok, 7}, ok},
             {"policy.term alone was put back", 6, #{floor => 7}, {ok, 7}, rollback},
             {"policy.term and guard.term were put back", 6, #{floor => 5}, {ok, 7}, rollback},
             {"policy.term and policy.mark were put back", 6, #{floor => 7}, {ok, 6}, rollback},
             {"the mark was removed", 7, #{floor => 7}, error, no_mark},
             {"a VM that has no mark of its own, as that of a shell", 1, #{}, error, ok},
             {"a mark out of reach", 7, #{floor => 7}, {ok, 1 bsl 60}, rollback}]].

usable(Generation, Guard, Mark) ->
    case distsec_guard:usable(Generation, Guard, Mark) of
        ok -> ok;
        {rejected, Why, Text} -> [_ | _] = lists:flatten(Text), Why
    end.
