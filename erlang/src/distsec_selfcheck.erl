-module(distsec_selfcheck).
-export([ensure/0]).
-spec ensure() -> ok.
ensure() ->
    ok = distsec_tls:load().
