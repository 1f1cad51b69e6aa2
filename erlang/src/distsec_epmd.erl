%% Takes the place of epmd (`-epmd_module distsec_epmd -start_epmd false`): peers and their ports
%% come from the policy, by full name. An unlisted name, asked for or gossiped, costs no DNS
%% query, no connection and no atom.
%%
%% It is also the first code of ours that runs: erl_distribution starts it before net_kernel, so
%% the boot guard stands here. A `-no_epmd` would leave it out; erl_distribution:init/1 looks for
%% exactly one without a value, so the generated flags hold `-no_epmd false`, which takes the
%% effect from any other.
-module(distsec_epmd).

-export([start_link/0, register_node/2, register_node/3, listen_port_please/2,
         address_please/3, port_please/2, port_please/3, names/0, names/1]).

%% Called by net_sup (erl_distribution:init/1). What it starts is not linked to net_sup: a fault
%% of the agent must not take the distribution down.
-spec start_link() -> ignore.
start_link() ->
    ok = distsec_guard:ensure(),
    ignore.

%% Called in net_kernel just before it listens (inet_tcp_dist:gen_listen/3), with auth running
%% and no link possible yet: the one moment at which cookies can be set with no gap.
-spec listen_port_please(term(), term()) -> {ok, inet:port_number()}.
listen_port_please(_Name, _Host) ->
    ok = distsec_guard:ensure(),
    ok = distsec_cookies:install(),
    {ok, maps:get(port, distsec_guard:guard())}.

%% The creation tells this run of the node from earlier ones (erl_epmd:register_node/3). It is ours
%% even where epmd knows the node too: epmd's begins anew when epmd does.
-spec register_node(term(), inet:port_number()) -> {ok, pos_integer()}.
register_node(_Name, Port) ->
    ok = distsec_guard:ensure(),
    ok = registers(distsec_guard:guard(), Port),
    <<Random:31>> = <<(crypto:strong_rand_bytes(4)):31/bitstring>>,
    {ok, 4 + Random}.

registers(#{epmd := loopback}, Port) -> distsec_registrar:listening(Port);
registers(_, _Port) -> ok.

-spec register_node(term(), inet:port_number(), term()) -> {ok, pos_integer()}.
register_node(Name, Port, _Family) ->
    register_node(Name, Port).

%% With the port in the answer nobody asks port_please (inet_tcp_dist, inet_tls_dist). On OTP 25 and
%% 27 this runs inside net_kernel, for whatever name an application or a peer came up with: it must
%% not fail, or the node would.
-spec address_please(term(), term(), atom()) ->
          {ok, inet:ip_address(), inet:port_number(), 6} | {error, nxdomain}.
address_please(Name, Host, Family) ->
    ok = distsec_tool:cookies(),
    Listed = [Peer || Full <- full_name(Name, Host),
                      #{name := N} = Peer <- distsec_policy:peers(distsec_policy:in_force()),
                      N =:= Full],
    case Listed of
        [#{address := Address, port := Port} | _] ->
            case inet:parse_strict_address(binary_to_list(Address)) of
                {ok, Ip} when tuple_size(Ip) =:= 4, Family =/= inet6;
                              tuple_size(Ip) =:= 8, Family =:= inet6 ->
                    {ok, Ip, Port, 6};
                _ ->
                    {error, nxdomain}
            end;
        [] ->
            {error, nxdomain}
    end.

%% None for what is no text: no such name is listed.
full_name(Name, Host) ->
    try unicode:characters_to_binary([text(Name), $@, text(Host)]) of
        Full when is_binary(Full) -> [Full];
        _ -> []
    catch
        error:_ -> []
    end.

%% For applications: RabbitMQ asks for its own every minute, and starts an epmd where none is known
%% (rabbit_epmd_monitor).
-spec port_please(term(), term()) -> {port, inet:port_number(), 6} | noport.
port_please(Name, Host) ->
    Peers = distsec_policy:peers(distsec_policy:in_force()),
    case [Port || Full <- full_name(Name, Host),
                  #{name := Listed, port := Port} <- itself() ++ Peers, Listed =:= Full, is_integer(Port)] of
        [Port | _] -> {port, Port, 6};
        [] -> noport
    end.

%% Whether it is on the list or not.
itself() ->
    case distsec_guard:kind() of
        node -> #{node := Name, port := Port} = distsec_guard:guard(), [#{name => Name, port => Port}];
        _ -> []
    end.

-spec port_please(term(), term(), term()) -> {port, inet:port_number(), 6} | noport.
port_please(Name, Host, _Timeout) ->
    port_please(Name, Host).

-spec names() -> {ok, []}.
names() ->
    {ok, []}.

-spec names(term()) -> {ok, []}.
names(_Host) ->
    {ok, []}.

text(Atom) when is_atom(Atom) -> atom_to_list(Atom);
text(List) -> List.
