%% The port protocol (docs/port-protocol.md), agent's side, without I/O: proofs and frames.
-module(distsec_port).

-export([version/0, hello/2, check_challenge/4, proof/5, same/2, encode/1, decode/1, read_key/1]).

-define(VERSION, 1).

-spec version() -> 1.
version() ->
    ?VERSION.

-spec hello(binary(), binary()) -> term().
hello(Node, NonceA) ->
    {hello, ?VERSION, Node, NonceA}.

%% Whether the other side of the socket holds the key: it answered our nonce.
-spec check_challenge(term(), binary(), binary(), binary()) ->
          {ok, NonceO :: binary()} | {error, version | proof | unexpected}.
check_challenge({challenge, ?VERSION, NonceO, Mac}, Key, Node, NonceA)
  when is_binary(NonceO), byte_size(NonceO) =:= 32, is_binary(Mac), byte_size(Mac) =:= 32 ->
    Expected = mac(Key, [<<"distsec orchestrator 1">>, Node, NonceA, NonceO]),
    case same(Mac, Expected) of
        true -> {ok, NonceO};
        false -> {error, proof}
    end;
check_challenge({challenge, _, _, _}, _, _, _) ->
    {error, version};
check_challenge(_, _, _, _) ->
    {error, unexpected}.

-spec proof(binary(), binary(), binary(), binary(), binary()) -> term().
proof(Key, Node, NonceA, NonceO, Launch) ->
    {proof, mac(Key, [<<"distsec agent 1">>, Node, NonceA, NonceO, Launch]), Launch}.

mac(Key, Parts) ->
    crypto:mac(hmac, sha256, Key, [[<<(byte_size(P)):32>>, P] || P <- Parts]).

%% In constant time, of two that are equally long; crypto:hash_equals/2 is not in all of OTP 25.
-spec same(binary(), binary()) -> boolean().
same(A, B) when byte_size(A) =:= byte_size(B) ->
    binary:decode_unsigned(crypto:exor(A, B)) =:= 0.

-spec encode(term()) -> binary().
encode(Term) ->
    term_to_binary(Term, [{minor_version, 2}]).

%% What the orchestrator sends makes no atoms here.
-spec decode(binary()) -> {ok, term()} | error.
decode(Frame) ->
    try {ok, binary_to_term(Frame, [safe])} catch error:badarg -> error end.

%% The 32 bytes of agent.key, 64 hex digits in the file.
-spec read_key(file:filename()) -> {ok, binary()} | error.
read_key(File) ->
    case prim_file:read_file(File) of
        {ok, Hex} when byte_size(Hex) >= 64 ->
            try {ok, << <<(list_to_integer([A, B], 16))>> || <<A, B>> <= binary:part(Hex, 0, 64) >>}
            catch error:badarg -> error
            end;
        _ ->
            error
    end.
