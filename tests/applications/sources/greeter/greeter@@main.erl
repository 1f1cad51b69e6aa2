%% What `gleam export erlang-shipment` adds to a package: it runs `main` of the module that it is given.
-module(greeter@@main).
-export([run/1]).

run(Module) ->
    {ok, _} = application:ensure_all_started(Module),
    _ = Module:main(),
    erlang:halt(0).
