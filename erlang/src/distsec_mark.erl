%% The high-water mark: the highest generation of the policy that this node has had in force, in a
%% file of its own beside the policy's. A policy is signed, so that it cannot be forged; an older
%% one put back in its place is as well signed as the newer, and only this tells them apart.
%%
%% The orchestrator makes the file before a node's first start and raises it before each; the node
%% raises it with every policy that it takes. Nobody ever lowers it, and a node without it admits
%% nobody (distsec_guard).
-module(distsec_mark).

-include_lib("kernel/include/file.hrl").

-export([read/1, raise/2]).

-define(FILE_NAME, "policy.mark").
-define(MAX_DIGITS, 19). % below 2^63

%% The mark in that directory; error where there is none that can be understood.
-spec read(Directory :: string()) -> {ok, non_neg_integer()} | error.
read(Directory) ->
    case prim_file:read_file(path(Directory)) of
        {ok, Content} when byte_size(Content) =< 64 -> parse(Content);
        _ -> error
    end.

parse(Content) ->
    case binary:split(Content, [<<" ">>, <<"\n">>], [global, trim]) of
        [<<"distsec_mark">>, <<"1">>, Digits] when byte_size(Digits) =< ?MAX_DIGITS ->
            try binary_to_integer(Digits) of
                Generation when Generation >= 0 -> {ok, Generation};
                _ -> error
            catch
                error:badarg -> error
            end;
        _ ->
            error
    end.

%% Has the mark at Generation at least, on the disk, when it returns ok.
-spec raise(Directory :: string(), non_neg_integer()) -> ok | {error, term()}.
raise(Directory, Generation) ->
    case read(Directory) of
        {ok, Mark} when Mark >= Generation -> ok;
        _ -> write(path(Directory), ["distsec_mark 1 ", integer_to_list(Generation), $\n])
    end.

%% Replaced by a rename, so that a crash leaves the old one or the new one; private from the moment
%% it exists. prim_file: at boot there is no file server yet.
write(Path, Content) ->
    New = Path ++ ".new",
    _ = prim_file:delete(New),
    case prim_file:open(New, [write, exclusive, raw]) of
        {ok, Handle} ->
            Written = all([fun() -> close_to_others(New) end,
                           fun() -> prim_file:write(Handle, Content) end,
                           fun() -> prim_file:sync(Handle) end]),
            Closed = prim_file:close(Handle),
            all([fun() -> Written end, fun() -> Closed end,
                 fun() -> prim_file:rename(New, Path) end]);
        Error ->
            Error
    end.

%% prim_file:write_file_info/2 begins with a chown(2) that changes nothing, and the filter of system
%% calls of a service may refuse even that. Such a service has a umask, too: what counts is the mode.
close_to_others(Path) ->
    case prim_file:write_file_info(Path, #file_info{mode = 8#600}) of
        ok ->
            ok;
        Error ->
            case prim_file:read_file_info(Path) of
                {ok, #file_info{mode = Mode}} when Mode band 8#077 =:= 0 -> ok;
                _ -> Error
            end
    end.

all([Step | Rest]) ->
    case Step() of
        ok -> all(Rest);
        Error -> Error
    end;
all([]) ->
    ok.

path(Directory) ->
    filename:join(Directory, ?FILE_NAME).
