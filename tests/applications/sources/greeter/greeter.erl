%% Stands for the package that Gleam compiles: a `main` that goes on for ever.
-module(greeter).
-export([main/0]).

main() ->
    io:put_chars(["greetings from ", atom_to_list(node()), $\n]),
    receive never -> nil end.
