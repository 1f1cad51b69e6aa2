-module(distsec_tls_tests).
-include_lib("eunit/include/eunit.hrl").
-include_lib("public_key/include/public_key.hrl").

%% For other tests of handshakes.
-export([begin_tls/0, end_tls/1, pair/2, identity/0]).

-define(STEP_MS, 30000).
-define(KEY, {distsec, tls}).

identity() ->
    <<"spiffe://demo/node/h/b">>.

%% ---- what belongs to a test ---------------------------------------------------------------------

%% A directory with a node's files, and the table in which ssl keeps what an optfile says.
begin_tls() ->
    {ok, _} = application:ensure_all_started(ssl),
    Unique = os:getpid() ++ "-" ++ integer_to_list(erlang:unique_integer([positive])),
    Directory = filename:absname("tls-" ++ Unique),
    ok = file:make_dir(Directory),
    Made = public_key:pkix_test_data(#{root => [{key, {namedCurve, secp256r1}}, {digest, sha256}],
                                       peer => [{key, {namedCurve, secp256r1}}, {digest, sha256},
                                                {extensions, extensions()}]}),
    {KeyType, Key} = proplists:get_value(key, Made),
    Files = #{certificate => [{'Certificate', proplists:get_value(cert, Made), not_encrypted}],
              key => [{KeyType, Key, not_encrypted}],
              trust => [{'Certificate', Der, not_encrypted} || Der <- proplists:get_value(cacerts, Made)]},
    [ok = file:write_file(path(Directory, Name), public_key:pem_encode(Entries))
     || {Name, Entries} <- maps:to_list(Files)],
    Self = self(),
    Holder = spawn(fun() ->
                           ssl_dist_opts = ets:new(ssl_dist_opts, [named_table, public]),
                           {ok, Supervisor} = ssl_dist_sup:start_link(), % distsec_dist:childspecs/0
                           Self ! {self(), ready},
                           receive stop -> ok end,
                           unlink(Supervisor),
                           gen_server:stop(Supervisor)
                   end),
    receive {Holder, ready} -> ok end,
    State = {Directory, Holder},
    given(server, good(server, State)),
    given(client, good(client, State)),
    ok = distsec_tls:load(),
    State.

end_tls({Directory, Holder}) ->
    Monitor = monitor(process, Holder),
    Holder ! stop,
    receive {'DOWN', Monitor, _, _, _} -> ok end,
    _ = persistent_term:erase(?KEY),
    ok = file:del_dir_r(Directory).

extensions() ->
    [#'Extension'{extnID = ?'id-ce-subjectAltName', critical = false,
                  extnValue = [{uniformResourceIdentifier, binary_to_list(identity())}]},
     #'Extension'{extnID = ?'id-ce-keyUsage', critical = true, extnValue = [digitalSignature]},
     #'Extension'{extnID = ?'id-ce-extKeyUsage', critical = false,
                  extnValue = [?'id-kp-serverAuth', ?'id-kp-clientAuth']}].

path(Directory, Name) ->
    filename:join(Directory, atom_to_list(Name) ++ ".pem").

%% What distsec writes for a role (beam/tls_options.py).
good(Role, {Directory, _}) ->
    [{certfile, list_to_binary(path(Directory, certificate))},
     {keyfile, list_to_binary(path(Directory, key))},
     {cacertfile, list_to_binary(path(Directory, trust))},
     {verify, verify_peer}, {versions, ['tlsv1.3']},
     {ciphers, ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"]},
     {verify_fun, {fun distsec_verify:verify/3, #{role => Role}}}]
        ++ [{fail_if_no_peer_cert, true} || Role =:= server].

given(Role, Options) ->
    true = ets:insert(ssl_dist_opts, {Role, Options}).

with_tls(Test) ->
    {setup, fun begin_tls/0, fun end_tls/1, fun(State) -> {timeout, 60, fun() -> Test(State) end} end}.

%% Loads with the server's options changed; the client's stay good.
load(Options, State) ->
    given(server, Options),
    Answer = distsec_tls:load(),
    given(server, good(server, State)),
    Answer.

%% ---- options ------------------------------------------------------------------------------------

what_distsec_writes_is_loaded_test_() ->
    with_tls(fun(State) -> ?assertEqual(ok, load(good(server, State), State)) end).

every_option_that_distsec_never_emits_is_refused_in_the_node_too_test_() ->
    with_tls(
      fun(State) ->
              Names = refused_by_the_orchestrator(),
              ?assert(length(Names) > 10),
              [begin
                   {error, Text} = load(good(server, State) ++ [{Name, true}], State),
                   Expected = "server." ++ atom_to_list(Name) ++ " is no option that this carrier takes",
                   ?assertEqual(Expected, Text)
               end || Name <- Names]
      end).

%% The names in _REFUSED of distsec/beam/tls_options.py.
refused_by_the_orchestrator() ->
    Root = os:getenv("DISTSEC_ROOT"),
    {ok, Source} = file:read_file(filename:join(Root, "distsec/beam/tls_options.py")),
    {match, [Block]} = re:run(Source, "_REFUSED: .*?= \\{\n(.*?)\n\\}",
                              [dotall, {capture, all_but_first, binary}]),
    {match, Names} = re:run(Block, "^    \"([a-z_]+)\":", [global, multiline, {capture, all_but_first, list}]),
    [list_to_atom(Name) || [Name] <- Names].

what_is_no_option_is_refused_test_() ->
    with_tls(
      fun(State) ->
              [?assertMatch({error, "server." ++ _}, load(good(server, State) ++ [Option], State))
               || Option <- [ktls, inet6, {ktls, true}, {a, b, c}, "verify_none", {"verify", verify_none},
                             {server_name_indication, disable}, {alpn_preferred_protocols, [<<"x">>]},
                             {anti_replay, '10k'}, {cookie, false}, {certificate_authorities, false}]]
      end).

what_must_be_there_must_be_there_as_it_is_test_() ->
    with_tls(
      fun(State) ->
              Good = good(server, State),
              [begin
                   ?assertMatch({error, "server must have " ++ _}, load(lists:keydelete(Name, 1, Good), State)),
                   [?assertMatch({error, "server must have " ++ _},
                                 load(lists:keystore(Name, 1, Good, {Name, Value}), State)) || Value <- Values]
               end || {Name, Values} <- [{verify, [verify_none, true]},
                                         {versions, [['tlsv1.2'], ['tlsv1.3', 'tlsv1.2'], []]},
                                         {fail_if_no_peer_cert, [false, undefined]}]]
      end).

%% Of one that is given twice OTP 25 takes the first, 27 and 29 the last.
an_option_that_is_given_twice_is_refused_test_() ->
    with_tls(
      fun(State) ->
              Good = good(server, State),
              [begin
                   ?assertMatch({error, "server." ++ _}, load(Good ++ [Option], State)),
                   ?assertMatch({error, "server." ++ _}, load([Option | Good], State))
               end || Option <- [{verify, verify_none}, {versions, ['tlsv1.2']}, {fail_if_no_peer_cert, false}]]
      end).

a_role_without_options_is_refused_test_() ->
    with_tls(
      fun(_) ->
              true = ets:delete(ssl_dist_opts, client),
              ?assertEqual({error, "the optfile has no client options"}, distsec_tls:load())
      end).

without_an_optfile_nothing_is_loaded_test() ->
    ?assertEqual({error, "there is no -ssl_dist_optfile"}, distsec_tls:load()).

files_that_hold_something_else_are_refused_by_name_test_() ->
    with_tls(
      fun({Directory, _} = State) ->
              {ok, Key} = file:read_file(path(Directory, key)),
              {ok, Certificate} = file:read_file(path(Directory, certificate)),
              Text = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
              Bad = #{certificate => [<<>>, Key, <<"no PEM">>, binary:copy(<<"x">>, 1048577)],
                      key => [<<>>, Certificate, list_to_binary(Text), <<255>>],
                      trust => [<<>>, Key, <<"-----BEGIN CERTIFICATE-----\nMII">>]},
              [begin
                   Path = path(Directory, Name),
                   {ok, Good} = file:read_file(Path),
                   [begin
                        ok = file:write_file(Path, Bytes),
                        ?assertMatch({error, _}, load(good(server, State), State))
                    end || Bytes <- Contents],
                   ok = file:delete(Path),
                   ?assertEqual({error, Path ++ " cannot be read"}, load(good(server, State), State)),
                   ok = file:write_file(Path, Good)
               end || {Name, Contents} <- maps:to_list(Bad)],
              ?assertEqual(ok, distsec_tls:load())
      end).

what_is_not_loaded_leaves_what_was_test_() ->
    with_tls(
      fun(State) ->
              Before = persistent_term:get(?KEY),
              {error, _} = load([ktls], State),
              ?assertEqual(Before, persistent_term:get(?KEY))
      end).

%% ---- handshakes ---------------------------------------------------------------------------------

%% Both ends of a connection on loopback: what Accept and Dial make of their sockets. The caller owns the
%% sessions.
pair(Accept, Dial) ->
    {ok, Listen} = gen_tcp:listen(0, [binary, {active, false}, {ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Listen),
    Self = self(),
    Dialler = spawn_link(fun() ->
                                 Options = [binary, {active, false}],
                                 {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, Options),
                                 Self ! {self(), owned(Dial(Socket), Self)},
                                 receive stop -> ok end
                         end),
    {ok, Socket} = gen_tcp:accept(Listen, ?STEP_MS),
    Accepted = Accept(Socket),
    Dialler ! accepted,
    Dialled = receive {Dialler, Answer} -> Answer after 2 * ?STEP_MS -> error(timeout) end,
    unlink(Dialler),
    Dialler ! stop,
    gen_tcp:close(Listen),
    {Accepted, Dialled}.

owned({ok, Ssl}, Owner) ->
    case ssl:controlling_process(Ssl, Owner) of
        ok -> {ok, Ssl};
        Refused -> Refused % by the server, after a client of TLS 1.3 was done
    end;
owned(Other, _) ->
    Other.

accept(Socket) ->
    distsec_tls:accept(Socket, #{selfcheck => self()}, ?STEP_MS).

connect(Socket) ->
    distsec_tls:connect(Socket, #{selfcheck => self()}, ?STEP_MS).

stranger(Options) ->
    fun(Socket) ->
            ssl:connect(Socket, [{verify, verify_none}, {log_level, none}, {active, false} | Options], ?STEP_MS)
    end.

no_connection_reads_a_file_test_() ->
    with_tls(
      fun({Directory, _}) ->
              [ok = file:delete(path(Directory, Name)) || Name <- [certificate, key, trust]],
              {{ok, Server}, {ok, Client}} = pair(fun accept/1, fun connect/1),
              [?assertMatch({ok, #{identities := [<<"spiffe://demo/node/h/b">>]}}, distsec_tls:peer(Ssl))
               || Ssl <- [Server, Client]],
              [ssl:close(Ssl) || Ssl <- [Server, Client]]
      end).

who_shows_no_certificate_fails_test_() ->
    with_tls(
      fun(_) ->
              {{error, Why}, _} = pair(fun accept/1, stranger([{versions, ['tlsv1.3']}])),
              ?assertEqual({certificate_required, <<"certificate_required">>}, distsec_tls:failure(Why))
      end).

who_speaks_an_older_version_fails_test_() ->
    with_tls(
      fun(_) ->
              {{error, Why}, _} = pair(fun accept/1, stranger([{versions, ['tlsv1.2']}])),
              ?assertMatch({protocol_version, _}, distsec_tls:failure(Why))
      end).

whoever_is_silent_or_gone_or_speaks_something_else_fails_test_() ->
    with_tls(
      fun(_) ->
              Silent = fun(Socket) -> receive accepted -> gen_tcp:close(Socket) end end,
              Gone = fun gen_tcp:close/1,
              Garbage = fun(Socket) ->
                                ok = gen_tcp:send(Socket, binary:copy(<<0>>, 100)),
                                receive accepted -> ok end
                        end,
              Briefly = fun(Socket) -> distsec_tls:accept(Socket, #{selfcheck => self()}, 100) end,
              [begin
                   {{error, Why}, _} = pair(Accept, Dial),
                   ?assertMatch({Expected, _}, {element(1, distsec_tls:failure(Why)), Why})
               end || {Expected, Accept, Dial} <- [{handshake_timeout, Briefly, Silent},
                                                   {closed, fun accept/1, Gone},
                                                   {malformed, fun accept/1, Garbage}]]
      end).

%% ---- what a session is --------------------------------------------------------------------------

%% TLS itself finds nothing wrong here: the answer of the unpatched releases (CVE-2026-89422,
%% CVE-2026-55953).
a_session_without_a_certificate_is_nobody_s_test_() ->
    with_tls(
      fun(State) ->
              Lax = fun(Versions) ->
                            fun(Socket) ->
                                    [{_, Given}] = ets:lookup(ssl_dist_opts, server),
                                    ssl:handshake(Socket, [{verify, verify_none}, {versions, Versions},
                                                           {log_level, none} | own(Given)], ?STEP_MS)
                            end
                    end,
              {{ok, Nobody}, _} = pair(Lax(['tlsv1.3']), stranger([{versions, ['tlsv1.3']}])),
              ?assertEqual({error, certificate_required}, distsec_tls:peer(Nobody)),
              Older = stranger([{versions, ['tlsv1.2']} | own(good(client, State))]),
              {_, {ok, Old}} = pair(Lax(['tlsv1.2']), Older),
              ?assertEqual({error, protocol_version}, distsec_tls:peer(Old)),
              [ssl:close(Ssl) || Ssl <- [Nobody, Old]]
      end).

own(Options) ->
    [Option || {Name, _} = Option <- Options, lists:member(Name, [certfile, keyfile])].

a_session_that_the_peer_has_closed_is_closed_test_() ->
    with_tls(
      fun(_) ->
              {{ok, Server}, {ok, Client}} = pair(fun accept/1, fun connect/1),
              ssl:close(Client),
              {error, closed} = ssl:recv(Server, 0, ?STEP_MS),
              ?assertEqual({error, closed}, distsec_tls:peer(Server)),
              ssl:close(Server),
              ?assertEqual({error, closed}, distsec_tls:peer(Server))
      end).

frames_have_lengths_and_none_is_longer_than_a_handshake_s_test_() ->
    with_tls(
      fun(_) ->
              {{ok, Server}, {ok, Client}} = pair(fun accept/1, fun connect/1),
              Longest = binary:copy(<<"x">>, 512),
              [ok = ssl:send(Client, Frame) || Frame <- [<<"a">>, <<>>, Longest, <<Longest/binary, 0>>]],
              [?assertEqual(Frame, iolist_to_binary(element(2, {ok, _} = ssl:recv(Server, 0, ?STEP_MS))))
               || Frame <- [<<"a">>, <<>>, Longest]],
              ?assertMatch({error, _}, ssl:recv(Server, 0, ?STEP_MS)),
              [ssl:close(Ssl) || Ssl <- [Server, Client]]
      end).

the_sender_is_found_in_the_layout_of_each_release_test() ->
    Sender = self(),
    Receiver = spawn(fun() -> ok end),
    ?assertEqual(Sender, distsec_tls:controller({sslsocket, {gen_tcp, x, tls_connection, undefined},
                                                 [Receiver, Sender]})),             % 25, 27
    ?assertEqual(Sender, distsec_tls:controller({sslsocket, x, Receiver, Sender, y, z, a})), % 28, 29
    [?assertEqual(undefined, distsec_tls:controller(Other))
     || Other <- [undefined, {}, {sslsocket}, {sslsocket, x, []}, {sslsocket, x, [Receiver]},
                  {sslsocket, x, y, z, a}, {other, x, [Receiver, Sender]}, <<>>]].

%% ---- why a handshake failed ---------------------------------------------------------------------

failures_have_reasons_of_the_list_test_() ->
    Own = fun(Alert) -> {tls_alert, {Alert, "TLS server: In state x at x.erl:1 generated SERVER ALERT: Fatal"}} end,
    Received = fun(Alert) -> {tls_alert, {Alert, "TLS client: In state x received SERVER ALERT: Fatal - x"}} end,
    [{lists:flatten(io_lib:format("~0p", [Why])),
      fun() ->
              {Reason, Detail} = distsec_tls:failure(Why),
              ?assertEqual(Expected, Reason),
              ?assert(lists:member(Reason, distsec_count:reasons())),
              ?assert(Detail =:= undefined orelse (is_binary(Detail) andalso byte_size(Detail) =< 255))
      end}
     || {Expected, Why} <-
            [{certificate_required, Own(certificate_required)}, {protocol_version, Own(protocol_version)},
             {unknown_ca, Own(unknown_ca)}, {expired, Own(certificate_expired)},
             {revoked, Own(certificate_revoked)},
             {certificate_invalid, Own(bad_certificate)}, {certificate_invalid, Own(unsupported_certificate)},
             {malformed, Own(unexpected_message)}, {malformed, Own(decode_error)},
             {malformed, Own(illegal_parameter)}, {malformed, Own(record_overflow)},
             {malformed, Own(bad_record_mac)},
             {handshake_failed, Own(handshake_failure)}, {handshake_failed, Own(an_alert_of_the_future)},
             {refused_by_peer, Received(certificate_unknown)}, {refused_by_peer, Received(handshake_failure)},
             %% its own alert may speak of what it has received
             {malformed, {tls_alert, {unexpected_message, "x generated SERVER ALERT: Fatal\n {received, 255}"}}},
             {malformed, {tls_alert, {unexpected_message, [16#20AC, 255, 256]}}},
             {closed, closed}, {closed, econnreset}, {closed, einval}, {handshake_timeout, timeout},
             {handshake_failed, {options, {ktls, true}}}, {handshake_failed, {error, <<0:9999>>}}]].
