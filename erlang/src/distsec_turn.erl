%% What only one process of a node may do at a time. Its turn is a registered name, which goes with the
%% process whatever ends that.
-module(distsec_turn).

-export([take/1]).

-define(LOOK_EVERY_MS, 1).

-spec take(fun(() -> Result)) -> Result.
take(Do) ->
    case try register(?MODULE, self()) catch error:badarg -> false end of
        true -> try Do() after unregister(?MODULE) end;
        false -> receive after ?LOOK_EVERY_MS -> take(Do) end
    end.
