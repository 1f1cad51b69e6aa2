-module(distsec_shell_output_tests).
-include_lib("eunit/include/eunit.hrl").

shown(Text) ->
    lists:flatten(distsec_shell_output:escape(Text)).

text_is_left_as_it_is_test() ->
    Text = "plain\ttext\nof ünïcode ☃ and 漢字\n",
    ?assertEqual(Text, shown(Text)),
    ?assertEqual(Text, shown(unicode:characters_to_binary(Text))).

what_a_terminal_obeys_is_shown_test_() ->
    [?_assertEqual(Expected, shown([Character]))
     || {Expected, Character} <- [{"\\x{1b}", $\e}, {"\\x{d}", $\r}, {"\\x{7}", 7}, {"\\x{0}", 0},
                                  {"\\x{7f}", 127}, {"\\x{9b}", 16#9b}]].

what_reorders_or_hides_text_is_shown_test_() ->
    [?_assertEqual(lists:flatten(io_lib:format("\\x{~.16b}", [C])), shown([C]))
     || C <- [16#ad, 16#200b, 16#200e, 16#202e, 16#2066, 16#2069, 16#2028, 16#feff, 16#e0001]].

what_is_no_unicode_is_not_shown_test() ->
    ?assertEqual("?", shown(<<255, 254>>)).
