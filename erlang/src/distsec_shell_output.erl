%% What a node prints through `distsec shell` without a terminal of its own (--eval, a pipe): a
%% group leader that hands it on to `user` as text. What a terminal would obey is shown and not
%% sent: it is the output of an application, and may hold what a stranger wrote.
-module(distsec_shell_output).

-export([start/0, write/1, escape/1]).

-define(READER_GONE, 141). % 128 + SIGPIPE, as shells say it

%% The group leader. It ends with the caller.
-spec start() -> pid().
start() ->
    Owner = self(),
    spawn_link(fun() ->
                       Monitor = monitor(process, Owner),
                       serve(Monitor)
               end).

serve(Monitor) ->
    receive
        {io_request, From, ReplyAs, Request} ->
            _ = case output(Request) of
                    {ok, Text} -> From ! {io_reply, ReplyAs, write(Text)};
                    {error, _} = Error -> From ! {io_reply, ReplyAs, Error};
                    other -> user ! {io_request, From, ReplyAs, Request}
                end,
            serve(Monitor);
        {'DOWN', Monitor, process, _, _} ->
            ok;
        _ ->
            serve(Monitor)
    end.

%% Writes Text, escaped, to the standard output; ends the VM where nobody reads that any more.
-spec write(unicode:chardata()) -> ok.
write(Text) ->
    try io:put_chars(user, escape(Text))
    catch error:_ -> halt(?READER_GONE)
    end.

%% The characters of a request that puts some. Of formatting functions only io_lib's own are called:
%% whoever sends the request has no business to name others.
output({put_chars, Encoding, Characters}) ->
    text(Encoding, Characters);
output({put_chars, Encoding, io_lib, Function, Arguments}) ->
    try apply(io_lib, Function, Arguments) of
        Characters -> text(Encoding, Characters)
    catch
        _:_ -> {error, put_chars}
    end;
output({put_chars, _, _, _, _}) ->
    {error, request};
output({requests, Requests}) when is_list(Requests) ->
    Outputs = [output(Request) || Request <- Requests],
    case [Other || Other <- Outputs, Other =:= other orelse element(1, Other) =/= ok] of
        [] -> {ok, [Text || {ok, Text} <- Outputs]};
        _ -> {error, request}
    end;
output(_) ->
    other.

text(Encoding, Characters) when Encoding =:= unicode; Encoding =:= latin1 ->
    try unicode:characters_to_list(Characters, Encoding) of
        Text when is_list(Text) -> {ok, Text};
        _ -> {error, {no_translation, Encoding, unicode}}
    catch
        error:_ -> {error, put_chars}
    end;
text(_, _) ->
    {error, request}.

%% Controls but line feed and tab, and the invisible characters that reorder a line, as `\x{…}`.
%% The same as distsec.model.text.escape, but for the line feeds of an output.
-spec escape(unicode:chardata()) -> unicode:chardata().
escape(Text) ->
    case unicode:characters_to_list(Text) of
        List when is_list(List) -> [shown(Character) || Character <- List];
        _ -> "?"
    end.

shown(Character) when Character =:= $\n; Character =:= $\t -> Character;
shown(Character) when Character < $\s; Character >= 16#7f, Character =< 16#9f -> hex(Character);
shown(Character) when Character < 16#ad -> Character;
shown(Character) ->
    case invisible(Character) of
        true -> hex(Character);
        false -> Character
    end.

hex(Character) ->
    io_lib:format("\\x{~.16b}", [Character]).

%% Unicode's categories Cf, Co, Zl and Zp (UnicodeData.txt).
invisible(C) ->
    C =:= 16#ad orelse (C >= 16#600 andalso C =< 16#605) orelse C =:= 16#61c orelse C =:= 16#6dd
        orelse C =:= 16#70f orelse C =:= 16#890 orelse C =:= 16#891 orelse C =:= 16#8e2
        orelse C =:= 16#180e orelse (C >= 16#200b andalso C =< 16#200f)
        orelse (C >= 16#2028 andalso C =< 16#202e) orelse (C >= 16#2060 andalso C =< 16#206f)
        orelse (C >= 16#e000 andalso C =< 16#f8ff) orelse C =:= 16#feff
        orelse (C >= 16#fff9 andalso C =< 16#fffb) orelse C =:= 16#110bd orelse C =:= 16#110cd
        orelse (C >= 16#13430 andalso C =< 16#1343f) orelse (C >= 16#1bca0 andalso C =< 16#1bca3)
        orelse (C >= 16#1d173 andalso C =< 16#1d17a) orelse C >= 16#e0000.
