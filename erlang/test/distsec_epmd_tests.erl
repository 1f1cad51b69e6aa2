-module(distsec_epmd_tests).
-include_lib("eunit/include/eunit.hrl").

policy() ->
    #{version => 1, cluster => <<"demo">>, generation => 1, issued_at => 1, connect => mesh,
      require_identity => true, denied => [<<"d@127.0.0.1">>], revoked => [], rules => [],
      peers => [#{name => Name, identity => <<"spiffe://demo/x">>, phase => Phase,
                  address => <<"127.0.0.1">>, port => Port}
                || {Name, Phase, Port} <- [{<<"a@127.0.0.1">>, open, 9101},
                                           {<<"p@127.0.0.1">>, prepared, 9102},
                                           {<<"d@127.0.0.1">>, open, 9103}]]}.

answers_for_listed_names_alone_test_() ->
    {setup, fun() -> distsec_policy:put_in_force(policy(), <<"digest">>) end,
     fun(_) -> persistent_term:erase({distsec, policy}) end,
     [?_assertEqual({ok, {127, 0, 0, 1}, 9101, 6},
                    distsec_epmd:address_please("a", "127.0.0.1", inet)),
      ?_assertEqual({ok, {127, 0, 0, 1}, 9101, 6},
                    distsec_epmd:address_please(a, '127.0.0.1', inet)),
      [?_assertEqual({error, nxdomain}, distsec_epmd:address_please(Name, Host, inet))
       || {Name, Host} <- [{"p", "127.0.0.1"}, {"d", "127.0.0.1"}, {"x", "127.0.0.1"},
                           {"a", "localhost"}, {"", ""}, {"a@127.0.0.1", "127.0.0.1"}]],
      ?_assertEqual({error, nxdomain}, distsec_epmd:address_please("a", "127.0.0.1", inet6)),
      ?_assertEqual({port, 9101, 6}, distsec_epmd:port_please("a", "127.0.0.1")),
      ?_assertEqual({port, 9101, 6}, distsec_epmd:port_please(a, '127.0.0.1', infinity)),
      [?_assertEqual(noport, distsec_epmd:port_please(Name, Host))
       || {Name, Host} <- [{"p", "127.0.0.1"}, {"x", "127.0.0.1"}, {"a", {127, 0, 0, 1}}]]]}.

%% On OTP 25 and 27 net_kernel itself asks: what fails here takes the node down.
no_name_however_strange_fails_test_() ->
    [?_assertEqual({error, nxdomain}, distsec_epmd:address_please(Name, Host, inet))
     || Name <- ["x", [16#142], [16#D800], [-1], [a], 7, {x}, <<255>>, ["x" | y]],
        Host <- ["h", [16#142], [16#D800], make_ref()]].
