%% The boot guard: before anything listens, is what this VM was told to be what the orchestrator
%% wrote? On OTP 25 a second `-proto_dist` silently listens in plaintext (net_kernel:protocols/0),
%% so whatever differs halts the VM, with the reason on the output and in `guard.refused`.
%%
%% check/2 is pure. ensure/0 runs once, from distsec_epmd, in the first process that asks.
-module(distsec_guard).

-include_lib("kernel/include/file.hrl").

-export([ensure/0, guard/0, kind/0, directory/0, node_name/0, cookies/0, policy_key/0, floor/0, started/0, launch/0]).
-export([check/2, usable/3, halt_with/2]).

-export_type([guard/0]).

-type guard() :: #{version := 1, node := binary(), cluster := binary(), proto_dist := string(),
                   optfile := binary() | undefined, optfile_sha256 := binary() | undefined,
                   interface := inet:ip_address(), port := inet:port_number(),
                   policy_key := binary(), kind => shell | tool, atom() => term()}.
-type found() :: #{arguments := [{atom(), [string()]}], interface := term(),
                   optfile_sha256 := binary() | undefined}.

-define(KEY, {distsec, guard}).
-define(MAX_FILE_BYTES, 1048576).
-define(EXIT_CODE, 78). % EX_CONFIG of sysexits.h
-define(NO_COOKIE, "set_by_distsec"). % distsec.model.cookies

%% ---- what may be -------------------------------------------------------------------------------

%% ok, or the first thing that differs: a code for the orchestrator and a line for people.
-spec check(guard(), found()) -> ok | {error, Code :: atom(), Text :: string()}.
check(#{proto_dist := Proto, node := Node} = Guard, #{arguments := Arguments} = Found) ->
    Values = fun(Flag) -> [V || {F, V} <- Arguments, F =:= Flag] end,
    first([
        fun() -> once(proto_dist, Values(proto_dist), Proto) end,
        fun() -> optfile(Guard, Values(ssl_dist_optfile), Found) end,
        fun() -> absent(ssl_dist_opt, Values(ssl_dist_opt)) end,
        fun() -> cookie(Values(setcookie)) end,
        fun() -> once(no_epmd, Values(no_epmd), "false") end,
        fun() -> listens(Guard, Values(dist_listen)) end,
        fun() -> name(Guard, binary_to_list(Node), Values(name), Values(sname)) end,
        fun() -> resolver(Values(epmd_module)) end,
        fun() -> interface(Guard, Found) end
    ]).

first([Check | Rest]) ->
    case Check() of
        ok -> first(Rest);
        Error -> Error
    end;
first([]) ->
    ok.

once(_Flag, [[Expected]], Expected) ->
    ok;
once(Flag, [], Expected) ->
    differs(Flag, "-~s ~ts is missing", [Flag, Expected]);
once(Flag, Values, Expected) ->
    differs(Flag, "-~s must be given once, as ~ts, and is given as ~0p; take it out of the "
            "command, vm.args, args_file, ERL_FLAGS or ERL_ZFLAGS", [Flag, Expected, Values]).

optfile(#{optfile := undefined}, Values, _) ->
    absent(ssl_dist_optfile, Values);
optfile(#{optfile := Path, optfile_sha256 := Wanted}, Values, #{optfile_sha256 := Digest}) ->
    case once(ssl_dist_optfile, Values, path(Path)) of
        ok when Digest =:= Wanted -> ok;
        ok -> differs(optfile_changed, "~ts is not what the orchestrator wrote", [path(Path)]);
        Error -> Error
    end.

absent(_Flag, []) ->
    ok;
absent(Flag, Values) ->
    differs(Flag, "-~s may not be given and is given as ~0p; take it out", [Flag, Values]).

%% What stands in a cookie's place for a start script that gives one whatever its user says, such as
%% a mix release's: distsec_cookies sets others before this node listens. One word, and no other, so
%% that nobody shows a cookie that is in use somewhere.
cookie(Values) ->
    case [V || V <- Values, V =/= [?NO_COOKIE]] of
        [] -> ok;
        _ -> differs(setcookie, "-setcookie shows the cookie to every user of the host; take it out, "
                     "distsec sets the cookies; a script that always gives one can be given "
                     ?NO_COOKIE, [])
    end.

%% The VM of `distsec shell` dials one node and listens to nobody, and so does a tool of `distsec exec`.
listens(#{kind := shell}, Values) -> once(dist_listen, Values, "false");
listens(#{kind := tool}, [["false"] | _]) -> ok; % the first counts (net_kernel:dist_listen_argument/0)
listens(#{kind := tool}, Values) -> once(dist_listen, Values, "false");
listens(_, Values) -> absent(dist_listen, Values).

%% erl_distribution:start_link/0 takes -sname before -name, and the first of several.
name(#{kind := tool}, _, _, _) ->
    ok; % it calls itself what it likes: the node that it dials knows it by its certificate
name(_, Node, Names, Snames) ->
    Given = lists:usort(Names ++ Snames),
    case Given of
        [[Node]] when Names =:= []; Snames =:= [] -> ok;
        _ -> differs(name, "the node must be ~s and its flags say ~0p; take -name and -sname out",
                     [Node, Given])
    end.

%% net_kernel:epmd_module/0 takes the first.
resolver([["distsec_epmd"] | _]) -> ok;
resolver(Values) ->
    differs(epmd_module, "-epmd_module must be distsec_epmd first, not ~0p", [Values]).

interface(#{interface := Wanted}, #{interface := Wanted}) -> ok;
interface(#{interface := Wanted}, #{interface := Found}) ->
    differs(interface, "kernel inet_dist_use_interface must be ~0p and is ~0p", [Wanted, Found]).

differs(Code, Format, Arguments) ->
    {error, Code, lists:flatten(io_lib:format(Format, Arguments))}.

path(Path) ->
    %% As init shows an argument: in the encoding of the locale (init:b2s/1), so that it compares.
    case unicode:characters_to_list(Path, file:native_name_encoding()) of
        List when is_list(List) -> List;
        _ -> binary_to_list(Path)
    end.

%% ---- at boot -----------------------------------------------------------------------------------

%% Checks, reads the policy and starts the agent's processes; halts the VM where the check fails.
%% Called again in the same boot it does nothing.
-spec ensure() -> ok.
ensure() ->
    case distsec_app:booted() of
        false ->
            Directory = case init:get_argument(distsec_dir) of
                            {ok, [[Dir] | _]} -> Dir;
                            _ -> halt_node(undefined, no_directory, "-distsec_dir is missing")
                        end,
            %% A node that cannot tell whether it is guarded is not.
            try boot(Directory)
            catch
                error:undef:Stack ->
                    halt_node(Directory, missing_library,
                              ["a library is not there: ", missing(Stack), "; the runtime needs "
                               "crypto, public_key, asn1 and ssl beside kernel and stdlib; a "
                               "release without them gets them by otp_libraries in its [[nodes]]"]);
                Class:Why ->
                    halt_node(Directory, internal, io_lib:format("~0P", [{Class, Why}, 20]))
            end;
        true ->
            ok
    end.

missing([{Module, Function, _, _} | _]) ->
    io_lib:format("~s:~s", [Module, Function]);
missing(_) ->
    "?".

boot(Directory) ->
    os:unsetenv("ERL_AFLAGS"),
    Guard = case consult(Directory, "guard.term") of
                {ok, {distsec_guard, #{version := 1} = Map}} -> Map;
                _ -> halt_node(Directory, no_guard, "guard.term is missing or unreadable; "
                               "start the node through distsec")
            end,
    case check(Guard, found(Guard)) of
        ok -> ok;
        {error, Code, Text} -> halt_node(Directory, Code, Text)
    end,
    ok = flags_of_children(Guard),
    Launch = distsec_identity:hex(crypto:strong_rand_bytes(16)),
    persistent_term:put(?KEY, #{guard => Guard, directory => Directory, launch => Launch,
                                started => os:system_time(millisecond)}),
    ok = distsec_clock:new(),
    ok = distsec_count:new(),
    Loaded = load_policy(Directory),
    ok = distsec_app:boot(),
    _ = distsec_redact:install(), % the agent sees that it stays
    ok = dials_only(Guard),
    tell_loaded(Loaded).

%% What this VM starts is not this node, and does not get its flags. Nor does it start an epmd, which any
%% child with a node name would: RabbitMQ starts one for just that (rabbit_nodes_common:ensure_epmd/0).
%% Without one it cannot listen, and would fail if it tried.
flags_of_children(#{epmd := loopback}) ->
    ok;
flags_of_children(_) ->
    true = os:putenv("ERL_AFLAGS", "-start_epmd false -dist_listen false"),
    ok.

%% The carrier's options, which distsec_dist:listen/2 loads otherwise. Its self-check is for nodes: the
%% certificate of a shell or a tool is none of a server.
dials_only(#{kind := _, proto_dist := "distsec"}) ->
    case distsec_tls:load() of
        ok -> ok;
        {error, Text} -> halt_node(directory(), tls_options, Text)
    end;
dials_only(_) ->
    ok.

found(Guard) ->
    #{arguments => init:get_arguments(),
      interface => application:get_env(kernel, inet_dist_use_interface, undefined),
      optfile_sha256 => optfile_digest(Guard)}.

optfile_digest(#{optfile := undefined}) ->
    undefined;
optfile_digest(#{optfile := Path}) ->
    case prim_file:read_file(Path) of
        {ok, Bytes} -> distsec_identity:hex(crypto:hash(sha256, Bytes));
        {error, _} -> undefined
    end.

%% A policy that cannot be used leaves none in force, which admits nobody; the orchestrator sees
%% it in the snapshot and pushes a good one.
load_policy(Directory) ->
    case prim_file:read_file(filename:join(Directory, "policy.term")) of
        {ok, Document} when byte_size(Document) =< ?MAX_FILE_BYTES ->
            Cluster = maps:get(cluster, guard()),
            case distsec_policy:parse(Document, policy_key()) of
                {ok, #{cluster := Cluster} = Policy} -> take_policy(Directory, Policy, Document);
                {ok, _} -> {rejected, cluster, "policy.term is of another cluster"};
                {error, Why} -> {rejected, Why, "policy.term cannot be used"}
            end;
        _ ->
            {rejected, malformed, "policy.term is missing or unreadable"}
    end.

take_policy(Directory, #{generation := Generation} = Policy, Document) ->
    case usable(Generation, guard(), distsec_mark:read(Directory)) of
        ok ->
            case not is_map_key(floor, guard()) orelse distsec_mark:raise(Directory, Generation) of
                {error, Why} ->
                    {rejected, not_persisted, io_lib:format("policy.mark: ~0P", [Why, 10])};
                _ ->
                    distsec_policy:put_in_force(Policy, distsec_policy:digest(Document), Document)
            end;
        Rejected ->
            Rejected
    end.

%% Whether a policy of that generation may be put in force. `floor` in the guard is the lowest that
%% the orchestrator knew it would ever have to be when it wrote that file; Mark is what the node
%% itself remembers, which must be there where the orchestrator made it. A signature says nothing of
%% this: an old policy is as well signed as a new one.
-spec usable(non_neg_integer(), map(), {ok, non_neg_integer()} | error) ->
          ok | {rejected, rollback | no_mark, io_lib:chars()}.
usable(_, #{floor := _}, error) ->
    {rejected, no_mark, "policy.mark is missing or unreadable; the orchestrator makes it anew at "
     "its next start"};
usable(Generation, Guard, Mark) ->
    Marked = case Mark of {ok, M} -> M; error -> 0 end,
    case max(maps:get(floor, Guard, 0), Marked) of
        Least when Generation >= Least -> ok;
        Least -> {rejected, rollback, io_lib:format("policy.term has generation ~b, and ~b is the "
                                                    "least that may be", [Generation, Least])}
    end.

%% Told where the orchestrator sees it and, since that may be away, where people look.
tell_loaded(ok) ->
    ok;
tell_loaded({rejected, Reason, Text}) ->
    Detail = unicode:characters_to_binary(Text),
    distsec_report:critical(policy_rejected, #{reason => Reason,
                                               detail => distsec_report:text(Detail)}),
    erlang:display_string("distsec: this node has no new policy (" ++ atom_to_list(Reason) ++ "): "
                          ++ binary_to_list(Detail) ++ "\n"),
    ok.

%% The lowest generation that this node may still be given.
-spec floor() -> non_neg_integer().
floor() ->
    Marked = case distsec_mark:read(directory()) of
                 {ok, Mark} -> Mark;
                 error -> 0
             end,
    max(maps:get(floor, guard(), 0), Marked).

consult(Directory, File) ->
    case prim_file:read_file(filename:join(Directory, File)) of
        {ok, Bytes} when byte_size(Bytes) =< ?MAX_FILE_BYTES ->
            try
                {ok, Tokens, _} = erl_scan:string(binary_to_list(Bytes)),
                erl_parse:parse_term(Tokens)
            catch
                error:_ -> error
            end;
        _ ->
            error
    end.

%% For what else must hold before this node may listen.
-spec halt_with(atom(), io_lib:chars()) -> no_return().
halt_with(Code, Text) ->
    halt_node(directory(), Code, Text).

%% Says why, where the operator and the orchestrator look for it, and ends the VM before it
%% listens. The standard output is there before any server that could write to it politely.
-spec halt_node(string() | undefined, atom(), io_lib:chars()) -> no_return().
halt_node(Directory, Code, Text) ->
    Printable = [if C >= $\s, C =< $~ -> C; true -> $? end
                 || C <- lists:sublist(lists:flatten(Text), 500)],
    _ = Directory =/= undefined
        andalso tell(filename:join(Directory, "guard.refused"),
                     [atom_to_list(Code), $\s, Printable, $\n]),
    erlang:display_string("distsec: this node does not listen (" ++ atom_to_list(Code) ++ "): "
                          ++ Printable ++ "\n"),
    erlang:halt(?EXIT_CODE, [{flush, true}]).

%% Private from the moment it exists: it is made under a name that nobody looks at.
tell(File, Line) ->
    Temporary = File ++ ".new",
    _ = prim_file:delete(Temporary),
    case prim_file:open(Temporary, [write, exclusive, raw]) of
        {ok, Handle} ->
            _ = prim_file:write_file_info(Temporary, #file_info{mode = 8#600}),
            _ = prim_file:write(Handle, Line),
            _ = prim_file:close(Handle),
            prim_file:rename(Temporary, File);
        Error ->
            Error
    end.

%% ---- afterwards --------------------------------------------------------------------------------

-spec guard() -> guard().
guard() ->
    maps:get(guard, persistent_term:get(?KEY)).

%% What this VM is; undefined where there is no guard.
-spec kind() -> node | shell | tool | undefined.
kind() ->
    case persistent_term:get(?KEY, undefined) of
        #{guard := Guard} -> maps:get(kind, Guard, node);
        _ -> undefined
    end.

%% The name of this node, before net_kernel knows it as well; undefined where there is no guard.
-spec node_name() -> binary() | undefined.
node_name() ->
    case persistent_term:get(?KEY, undefined) of
        #{guard := #{node := Name}} -> Name;
        _ -> undefined
    end.

-spec directory() -> string().
directory() ->
    maps:get(directory, persistent_term:get(?KEY)).

%% Names this run of the VM.
-spec launch() -> binary().
launch() ->
    maps:get(launch, persistent_term:get(?KEY)).

%% When it was, in Unix milliseconds.
-spec started() -> integer().
started() ->
    maps:get(started, persistent_term:get(?KEY)).

-spec policy_key() -> binary().
policy_key() ->
    base64:decode(maps:get(policy_key, guard())).

%% Read where they are set, and kept nowhere. Halts the VM if there are none: a default would
%% be a cookie that somebody can guess.
-spec cookies() -> #{default := binary(), peers := #{binary() => binary()}, step => non_neg_integer(),
                     other_default => binary(), other_peers => #{binary() => binary()}}.
cookies() ->
    case consult(directory(), "cookie.term") of
        {ok, {distsec_cookies, #{version := 1, default := Default, peers := Peers} = Cookies}}
          when is_binary(Default), byte_size(Default) >= 32, is_map(Peers) ->
            maps:with([default, peers, step, other_default, other_peers], Cookies);
        _ ->
            halt_node(directory(), no_cookie, "cookie.term is missing or unreadable")
    end.
