-module(distsec_redact_tests).

-include_lib("eunit/include/eunit.hrl").

-define(SECRET, "traffic_key_of_a_session").

event(Report) ->
    #{level => error, msg => {report, Report}, meta => #{}}.

reports() ->
    State = #{key => list_to_binary(?SECRET)},
    [#{label => {gen_statem, terminate}, reason => {error, {badmatch, {error, State}}, [{m, f, [State], []}]}, state => {connection, State}},
     #{label => {gen_server, terminate}, reason => {oops, State}, state => State},
     #{label => {proc_lib, crash}, report => [[{error_info, {exit, {oops, State}, []}}, {dictionary, [State]}], []]},
     #{label => {supervisor, child_terminated}, report => [{reason, {oops, State}}, {offender, [State]}]}].

within_the_distribution(Test) ->
    {spawn, fun() -> put('$ancestors', [tls_dist_connection_sup]), Test() end}.

a_report_of_a_process_of_the_distribution_says_why_and_no_value_test_() ->
    [within_the_distribution(
       fun() ->
               #{msg := {Format, Arguments}} = distsec_redact:filter(event(Report), []),
               Text = lists:flatten(io_lib:format(Format, Arguments)),
               ?assertEqual(nomatch, string:find(Text, ?SECRET)),
               ?assertEqual(nomatch, string:find(Text, "key")),
               ?assertNotEqual(nomatch, string:find(Text, "ended ("))
       end) || Report <- reports()].

why_is_still_said_test_() ->
    within_the_distribution(
      fun() ->
              [First, Second | _] = [begin #{msg := {_, [_, _, Why]}} = distsec_redact:filter(event(R), []), Why end
                                     || R <- reports()],
              ?assertEqual(<<"{badmatch,{error,'_'}}">>, First),
              ?assertEqual(<<"{oops,'_'}">>, Second)
      end).

what_others_report_is_left_as_it_is_test_() ->
    {spawn, fun() -> [?assertEqual(ignore, distsec_redact:filter(event(Report), [])) || Report <- reports()] end}.

what_is_no_report_of_an_end_is_left_as_it_is_test_() ->
    [within_the_distribution(fun() -> ?assertEqual(ignore, distsec_redact:filter(Event, [])) end)
     || Event <- [event(#{label => {ssl, notice}}), #{level => error, msg => {"~p", [x]}, meta => #{}},
                  #{level => error, msg => {string, "x"}, meta => #{}}]].
