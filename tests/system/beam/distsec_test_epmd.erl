%% The resolver of nodes that no orchestrator knows (intruders, strangers): where their victims
%% listen is told by environment variables, which a test may also change with os:putenv/2.
%%
%%     DISTSEC_TEST_LISTEN   the port this node listens on (0: any)
%%     DISTSEC_TEST_PEERS    "a@127.0.0.1=9100 b@127.0.0.1=9101"
-module(distsec_test_epmd).

-export([start_link/0, register_node/2, register_node/3, listen_port_please/2,
         address_please/3, port_please/2, port_please/3, names/0, names/1]).

-spec start_link() -> ignore.
start_link() ->
    ignore.

-spec register_node(term(), term()) -> {ok, pos_integer()}.
register_node(_Name, _Port) ->
    {ok, 4 + erlang:unique_integer([positive]) rem 1000000}.

-spec register_node(term(), term(), term()) -> {ok, pos_integer()}.
register_node(Name, Port, _Family) ->
    register_node(Name, Port).

-spec listen_port_please(term(), term()) -> {ok, inet:port_number()}.
listen_port_please(_Name, _Host) ->
    {ok, list_to_integer(os:getenv("DISTSEC_TEST_LISTEN", "0"))}.

%% A host that is called after its address is at it, every other one here.
-spec address_please(term(), term(), atom()) -> {ok, inet:ip_address()}.
address_please(_Name, Host, inet6) ->
    found(inet:parse_ipv6strict_address(lists:flatten(io_lib:format("~s", [Host]))),
          {0, 0, 0, 0, 0, 0, 0, 1});
address_please(_Name, Host, _Family) ->
    found(inet:parse_ipv4strict_address(lists:flatten(io_lib:format("~s", [Host]))), {127, 0, 0, 1}).

found({ok, Address}, _) -> {ok, Address};
found({error, _}, Here) -> {ok, Here}.

-spec port_please(term(), term()) -> {port, inet:port_number(), 6} | noport.
port_please(Name, Address) ->
    port_please(Name, Address, infinity).

%% A name without its host comes here; the tests' names are unique before the @.
-spec port_please(term(), term(), term()) -> {port, inet:port_number(), 6} | noport.
port_please(Name, _Address, _Timeout) ->
    Ports = [{Head, list_to_integer(Port)}
             || Entry <- string:lexemes(os:getenv("DISTSEC_TEST_PEERS", ""), " "),
                [Peer, Port] <- [string:lexemes(Entry, "=")],
                [Head | _] <- [string:lexemes(Peer, "@")]],
    case lists:keyfind(lists:flatten(io_lib:format("~s", [Name])), 1, Ports) of
        {_, Port} -> {port, Port, 6};
        false -> noport
    end.

-spec names() -> {ok, []}.
names() ->
    {ok, []}.

-spec names(term()) -> {ok, []}.
names(_Host) ->
    {ok, []}.
