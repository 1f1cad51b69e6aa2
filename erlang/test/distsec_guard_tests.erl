-module(distsec_guard_tests).
-include_lib("eunit/include/eunit.hrl").

guard() ->
    #{version => 1, node => <<"a@127.0.0.1">>, cluster => <<"demo">>, proto_dist => "inet_tls",
      optfile => <<"/d/dist.conf">>, optfile_sha256 => <<"ab">>, interface => {127, 0, 0, 1},
      port => 9100, policy_key => <<>>}.

arguments() ->
    [{distsec_dir, ["/d"]}, {name, ["a@127.0.0.1"]}, {proto_dist, ["inet_tls"]},
     {ssl_dist_optfile, ["/d/dist.conf"]}, {epmd_module, ["distsec_epmd"]}, {no_epmd, ["false"]}].

found(Arguments) ->
    #{arguments => Arguments, interface => {127, 0, 0, 1}, optfile_sha256 => <<"ab">>}.

accepts_what_the_orchestrator_wrote_test() ->
    ?assertEqual(ok, distsec_guard:check(guard(), found(arguments()))).

accepts_its_own_name_twice_test() ->
    ?assertEqual(ok, distsec_guard:check(guard(), found(arguments() ++ [{name, ["a@127.0.0.1"]}]))).

accepts_the_word_that_stands_for_no_cookie_test() ->
    Given = [{setcookie, ["set_by_distsec"]}, {setcookie, ["set_by_distsec"]}],
    ?assertEqual(ok, distsec_guard:check(guard(), found(arguments() ++ Given))),
    [?assertMatch({error, setcookie, _}, distsec_guard:check(guard(), found(arguments() ++ Given ++ [More])))
     || More <- [{setcookie, ["x"]}, {setcookie, []}, {setcookie, ["b@h", "set_by_distsec"]}]].

refuses_what_the_node_adds_test_() ->
    [?_assertMatch({error, Code, _}, distsec_guard:check(guard(), found(arguments() ++ [Added])))
     || {Code, Added} <- [{proto_dist, {proto_dist, ["inet_tcp"]}},
                          {proto_dist, {proto_dist, ["inet_tls"]}},
                          {ssl_dist_optfile, {ssl_dist_optfile, ["/x"]}},
                          {ssl_dist_opt, {ssl_dist_opt, ["server_verify", "verify_none"]}},
                          {setcookie, {setcookie, ["x"]}},
                          {setcookie, {setcookie, ["b@h", "x"]}},
                          {no_epmd, {no_epmd, []}},
                          {dist_listen, {dist_listen, ["false"]}},
                          {name, {name, ["b@127.0.0.1"]}},
                          {name, {sname, ["b"]}}]].

refuses_what_is_missing_test_() ->
    [?_assertMatch({error, Code, _},
                   distsec_guard:check(guard(), found(lists:keydelete(Flag, 1, arguments()))))
     || {Code, Flag} <- [{proto_dist, proto_dist}, {ssl_dist_optfile, ssl_dist_optfile},
                         {epmd_module, epmd_module}, {no_epmd, no_epmd}, {name, name}]].

refuses_another_interface_test() ->
    ?assertMatch({error, interface, _},
                 distsec_guard:check(guard(), (found(arguments()))#{interface => {0, 0, 0, 0}})).

refuses_an_optfile_that_was_changed_test() ->
    ?assertMatch({error, optfile_changed, _},
                 distsec_guard:check(guard(), (found(arguments()))#{optfile_sha256 => <<"cd">>})).

in_development_there_is_no_optfile_test() ->
    Guard = (guard())#{proto_dist => "inet_tcp", optfile => undefined,
                       optfile_sha256 => undefined},
    Arguments = lists:keyreplace(proto_dist, 1, lists:keydelete(ssl_dist_optfile, 1, arguments()),
                                 {proto_dist, ["inet_tcp"]}),
    Found = (found(Arguments))#{optfile_sha256 => undefined},
    ?assertEqual(ok, distsec_guard:check(Guard, Found)),
    Optfile = Arguments ++ [{ssl_dist_optfile, ["/d/dist.conf"]}],
    ?assertMatch({error, ssl_dist_optfile, _},
                 distsec_guard:check(Guard, Found#{arguments => Optfile})).

the_vm_of_a_shell_listens_to_nobody_test() ->
    Guard = (guard())#{kind => shell},
    Silent = {dist_listen, ["false"]},
    ?assertEqual(ok, distsec_guard:check(Guard, found(arguments() ++ [Silent]))),
    [?assertMatch({error, dist_listen, _}, distsec_guard:check(Guard, found(arguments() ++ Flags)))
     || Flags <- [[], [{dist_listen, ["true"]}], [Silent, Silent]]].

a_tool_calls_itself_what_it_likes_and_listens_to_nobody_test() ->
    Guard = (guard())#{kind => tool},
    Silent = {dist_listen, ["false"]},
    Unnamed = [Flag || {Key, _} = Flag <- arguments(), Key =/= name],
    [?assertEqual(ok, distsec_guard:check(Guard, found(Flags)))
     || Flags <- [[Silent | arguments()], [Silent | Unnamed], [Silent, {name, ["other@h"]} | Unnamed],
                  [Silent, {dist_listen, ["true"]} | Unnamed]]],
    [?assertMatch({error, dist_listen, _}, distsec_guard:check(Guard, found(Flags)))
     || Flags <- [Unnamed, [{dist_listen, ["true"]}, Silent | Unnamed]]],
    ?assertMatch({error, proto_dist, _},
                 distsec_guard:check(Guard, found([Silent, {proto_dist, ["inet_tcp"]} | arguments()]))).
