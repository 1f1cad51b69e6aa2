%% Proves anew who is at the two ends of a link that is up, so that the link need not end with the
%% certificates that it was made with: a second mutual TLS handshake over a connection of its own, with the
%% certificates of now, through the same gates; then both ends show that they hold the link's transcript
%% (distsec_handshake) and each other's cookie. What is proven counts for that link and no other.
%%
%% Four frames, over a session for which the dialler asked for this (distsec_tls:purpose/1):
%%   dialler  → acceptor  1, link (32), nonce (32), name of the dialler
%%   acceptor → dialler   1, nonce (32), MAC (32)
%%   dialler  → acceptor  1, MAC (32)
%%   acceptor → dialler   1, which of its cookies the dialler's was (1 the one in use, 2 another)
%% A MAC is HMAC-SHA256 with the cookie in use of who makes it, over a label of its role, the link, both
%% nonces and both names.
-module(distsec_proof).

-export([answer/2, prove/1]).
-export([opening/3, read_opening/1, mac/3, known_by/3]).

-export_type([outcome/0]).

-type outcome() :: #{serial := binary(), not_after := integer(), cookie := current | other}.
-type link() :: #{link := binary(), dialler := binary(), acceptor := binary(), nonces := binary()}.

-define(CONNECT_MS, 3000).
-define(TLS_MS, 5000).
-define(FRAME_MS, 5000).
-define(VERSION, 1).
-define(HASH, 32).
-define(HEADER, (1 + 2 * ?HASH)).
-define(MAX_NAME_BYTES, 255).

%% ---- we are dialled -----------------------------------------------------------------------------

%% In the process that did the TLS handshake, whose peer was admitted by its certificate.
-spec answer(distsec_attempts:id(), term()) -> ok.
answer(Id, Ssl) ->
    case receive_frame(Ssl) of
        {ok, Frame} ->
            case read_opening(Frame) of
                {ok, Link, Nonce, Name} -> opened(Id, Ssl, Link, Nonce, Name);
                error -> distsec_attempts:refuse(Id, malformed, #{})
            end;
        error -> distsec_attempts:refuse(Id, closed, #{})
    end.

opened(Id, Ssl, Link, Nonce, Name) ->
    distsec_attempts:learn(Id, #{name => Name, claimed => Name}),
    case distsec_handshake:passes(Id) andalso the_link(Id, Name, Link) of
        {ok, LinkId} -> answered(Id, Ssl, LinkId, Link, Nonce, Name);
        _ -> ok % told of, or the link has just ended
    end.

%% The link must be the one, and its peer who it was.
the_link(Id, Name, Link) ->
    #{identity := Identity} = distsec_attempts:facts(Id),
    case distsec_attempts:of_link(Name) of
        {ok, LinkId, #{link := Known, identity := Identity}} when byte_size(Known) =:= byte_size(Link) ->
            distsec_port:same(Known, Link) andalso {ok, LinkId};
        {ok, _, #{identity := Other}} when Other =/= Identity ->
            distsec_attempts:refuse(Id, wrong_peer, #{detail => <<"another identity than the link's">>}),
            false;
        _ -> false
    end.

answered(Id, Ssl, LinkId, Link, Nonce, Name) ->
    Own = crypto:strong_rand_bytes(?HASH),
    About = #{link => Link, dialler => Name, acceptor => distsec_guard:node_name(),
              nonces => <<Nonce/binary, Own/binary>>},
    [{current, Cookie} | _] = Cookies = distsec_cookies:candidates(Name),
    Sent = ssl:send(Ssl, [?VERSION, Own, mac(acceptor, Cookie, About)]),
    case Sent =:= ok andalso receive_frame(Ssl) of
        {ok, <<?VERSION, Mac/binary>>} ->
            case known_by(dialler, Mac, {Cookies, About}) of
                {ok, Which} ->
                    _ = extended(LinkId, Id, Name),
                    _ = ssl:send(Ssl, [?VERSION, case Which of current -> 1; other -> 2 end]),
                    %% The dialler closes: what it has not read yet must not be lost.
                    _ = ssl:recv(Ssl, 0, ?FRAME_MS),
                    ok;
                error -> distsec_attempts:refuse(Id, bad_cookie, #{})
            end;
        _ -> ok % it does not take our cookie, and tells of that itself; or it is gone
    end.

%% ---- we dial ------------------------------------------------------------------------------------

%% Proves both ends of our link with that name anew. Takes as long as a handshake, or some seconds.
-spec prove(Name :: binary()) -> {ok, outcome()} | {error, Reason :: atom()}.
prove(Name) ->
    case {distsec_attempts:of_link(Name), distsec_policy:address(Name)} of
        {{ok, LinkId, #{link := Link, identity := Identity}}, {ok, Address}} ->
            Facts = #{direction => out, address => Address, name => Name, claimed => Name},
            case distsec_attempts:outbound(self(), Facts) of
                {ok, Id} -> dialled(Address, Id, LinkId, Link, Identity, Name);
                refused -> {error, busy}
            end;
        {error, _} -> {error, no_link};
        {_, error} -> {error, no_address}
    end.

dialled({Ip, Port}, Id, LinkId, Link, Identity, Name) ->
    case gen_tcp:connect(Ip, Port, distsec_handshake:connect_options(Ip), ?CONNECT_MS) of
        {ok, Socket} ->
            distsec_attempts:learn(Id, #{socket => Socket}),
            case distsec_tls:connect_for_proof(Socket, #{attempt => Id}, ?TLS_MS) of
                {ok, Ssl} ->
                    try session(Id, Ssl, LinkId, Link, Identity, Name)
                    after ssl:close(Ssl)
                    end;
                {error, Why} ->
                    {Reason, Detail} = distsec_tls:failure(Why),
                    distsec_attempts:refuse(Id, Reason, #{detail => Detail}),
                    gen_tcp:close(Socket),
                    {error, Reason}
            end;
        {error, _} ->
            {error, unreachable}
    end.

session(Id, Ssl, LinkId, Link, Identity, Name) ->
    case distsec_handshake:admitted(Id, Ssl) andalso distsec_tls:purpose(Ssl) of
        false -> {error, refused};
        proof ->
            case distsec_attempts:facts(Id) of
                #{identity := Identity} -> exchange(Id, Ssl, LinkId, Link, Name);
                _ ->
                    distsec_attempts:refuse(Id, wrong_peer, #{detail => <<"another identity than the link's">>}),
                    {error, wrong_peer}
            end;
        _ -> {error, unsupported}
    end.

exchange(Id, Ssl, LinkId, Link, Name) ->
    Nonce = crypto:strong_rand_bytes(?HASH),
    Own = distsec_guard:node_name(),
    Sent = ssl:send(Ssl, opening(Link, Nonce, Own)),
    case Sent =:= ok andalso receive_frame(Ssl) of
        {ok, Frame} when byte_size(Frame) =:= 1 + 2 * ?HASH ->
            Theirs = binary:part(Frame, 1, ?HASH),
            About = #{link => Link, dialler => Own, acceptor => Name, nonces => <<Nonce/binary, Theirs/binary>>},
            [{current, Cookie} | _] = Cookies = distsec_cookies:candidates(Name),
            case known_by(acceptor, binary:part(Frame, 1 + ?HASH, ?HASH), {Cookies, About}) of
                {ok, Which} ->
                    _ = ssl:send(Ssl, [?VERSION, mac(dialler, Cookie, About)]),
                    agreed(Id, Ssl, LinkId, Name, Which);
                error ->
                    distsec_attempts:refuse(Id, bad_cookie, #{}),
                    {error, bad_cookie}
            end;
        _ -> {error, not_taken} % the peer knows no such link, or refused us, and tells of that itself
    end.

agreed(Id, Ssl, LinkId, Name, Which) ->
    case receive_frame(Ssl) of
        {ok, <<?VERSION, Theirs>>} when Theirs =:= 1; Theirs =:= 2 ->
            #{serial := Serial, not_after := NotAfter} = extended(LinkId, Id, Name),
            {ok, #{serial => Serial, not_after => NotAfter,
                   cookie => case {Which, Theirs} of {current, 1} -> current; _ -> other end}};
        _ -> {error, not_taken}
    end.

%% ---- both ---------------------------------------------------------------------------------------

%% The link is from now on one of the certificates that were shown here.
extended(LinkId, Id, Name) ->
    Shown = maps:with([identity, identities, names, usages, serial, issuer, not_after, proven],
                      distsec_attempts:facts(Id)),
    distsec_attempts:told(Id),
    distsec_attempts:learn(LinkId, Shown),
    ok = distsec_watch:proven(Name),
    Shown.

receive_frame(Ssl) ->
    case ssl:recv(Ssl, 0, ?FRAME_MS) of
        {ok, Data} -> {ok, iolist_to_binary(Data)};
        {error, _} -> error
    end.

%% ---- frames (pure) ------------------------------------------------------------------------------

-spec opening(Link :: binary(), Nonce :: binary(), Name :: binary()) -> binary().
opening(Link, Nonce, Name) when byte_size(Link) =:= ?HASH, byte_size(Nonce) =:= ?HASH ->
    <<?VERSION, Link/binary, Nonce/binary, Name/binary>>.

-spec read_opening(binary()) -> {ok, Link :: binary(), Nonce :: binary(), Name :: binary()} | error.
read_opening(Frame) when byte_size(Frame) > ?HEADER, byte_size(Frame) =< ?HEADER + ?MAX_NAME_BYTES ->
    Name = binary:part(Frame, ?HEADER, byte_size(Frame) - ?HEADER),
    case binary:at(Frame, 0) =:= ?VERSION andalso distsec_admission:safe_name(Name) of
        true -> {ok, binary:part(Frame, 1, ?HASH), binary:part(Frame, 1 + ?HASH, ?HASH), Name};
        false -> error
    end;
read_opening(_) ->
    error.

%% What Role shows of its cookie; every part has its length, so that none runs into the next.
-spec mac(dialler | acceptor, Cookie :: binary(), link()) -> binary().
mac(Role, Cookie, #{link := Link, dialler := Dialler, acceptor := Acceptor, nonces := Nonces}) ->
    Parts = [<<"distsec proof 1 ">>, atom_to_binary(Role, utf8), Link, Nonces, Dialler, Acceptor],
    crypto:mac(hmac, sha256, Cookie, [[<<(byte_size(Part)):32>>, Part] || Part <- Parts]).

%% With which of the cookies that we take Role made that MAC.
-spec known_by(dialler | acceptor, Mac :: binary(), {distsec_cookies:candidates(), link()}) ->
          {ok, current | other} | error.
known_by(Role, Mac, {Cookies, About}) when byte_size(Mac) =:= ?HASH ->
    case [Which || {Which, Cookie} <- Cookies, distsec_port:same(mac(Role, Cookie, About), Mac)] of
        [Which | _] -> {ok, Which};
        [] -> error
    end;
known_by(_, _, _) ->
    error.
