%% Keeps the traffic keys of the distribution out of the log. A process of ssl that ends in an unforeseen way
%% logs its whole state, 160 KB with the keys of the session in it (gen_statem and proc_lib say `Crash dump`
%% or `crasher`; ssl's format_status/2 hides some of it on some releases). What is logged instead says which
%% process ended and why, and no value.
-module(distsec_redact).

-export([install/0, filter/2]).

-define(ID, distsec_redact).
-define(DEPTH, 3).

%% Also again should somebody have removed it; false while logger is not there.
-spec install() -> boolean().
install() ->
    try logger:get_primary_config() of
        #{filters := Filters} ->
            lists:keymember(?ID, 1, Filters)
                orelse logger:add_primary_filter(?ID, {fun ?MODULE:filter/2, []}) =:= ok
    catch
        _:_ -> false
    end.

%% Called by logger in the process that logs, for every event: what concerns others costs a match. A filter
%% that fails is removed by logger, and the next report would be whole.
-spec filter(logger:log_event(), term()) -> logger:filter_return().
filter(#{msg := {report, #{label := {Kind, What}} = Report}} = Event, _)
  when Kind =:= gen_statem; Kind =:= gen_server; Kind =:= proc_lib; Kind =:= supervisor ->
    try distsec_handler:of_distribution() of
        true -> Event#{msg := {"distsec: a TLS process of the distribution ended (~s ~s): ~ts",
                               [Kind, What, distsec_report:text(shape(why(Report), ?DEPTH))]}};
        false -> ignore
    catch
        _:_ -> stop
    end;
filter(_, _) ->
    ignore.

why(#{reason := {_Class, Reason, _Stack}}) -> Reason;
why(#{reason := Reason}) -> Reason;
why(#{report := [Fields | _]}) when is_list(Fields) ->
    case proplists:get_value(error_info, Fields) of
        {_Class, Reason, _Stack} -> Reason;
        _ -> unknown
    end;
why(#{report := Fields}) when is_list(Fields) -> proplists:get_value(reason, Fields, unknown);
why(_) -> unknown.

%% Atoms and how they are nested; nothing that a key or a peer's bytes could be part of.
shape(Atom, _) when is_atom(Atom) -> Atom;
shape(Tuple, Depth) when is_tuple(Tuple), tuple_size(Tuple) > 0, Depth > 0 ->
    list_to_tuple([shape(Each, Depth - 1) || Each <- lists:sublist(tuple_to_list(Tuple), 4)]);
shape(_, _) -> '_'.
