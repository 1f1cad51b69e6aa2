%% Makes events: one map for each thing that was refused or changed, of bounded texts, counted
%% and put on its lane. Called by whoever sees it, in its own process.
-module(distsec_report).

-export([refusal/3, critical/2, now_ms/0, address/1, text/1]).

-export_type([endpoint/0]).

-type endpoint() :: {inet:ip_address(), inet:port_number()} | undefined.

-define(MAX_TEXT, 255).

%% A handshake that did not become a link. Fields: address, identity, serial, claimed, rule, detail.
-spec refusal(in | out, atom(), map()) -> ok.
refusal(Direction, Reason, Fields) ->
    distsec_count:refusal(Direction, Reason),
    Empty = #{address => undefined, identity => undefined, serial => undefined,
              claimed => undefined, rule => undefined, detail => undefined},
    distsec_ring:put(refusals, maps:merge(Empty, Fields#{type => refusal, at_ms => now_ms(),
                                                         direction => Direction,
                                                         reason => Reason})).

-spec critical(atom(), map()) -> ok.
critical(Type, Fields) ->
    distsec_ring:put(critical, Fields#{type => Type, at_ms => now_ms()}).

-spec now_ms() -> integer().
now_ms() ->
    os:system_time(millisecond).

%% `127.0.0.1:40112`, IPv6 in brackets.
-spec address(term()) -> binary() | undefined.
address({Ip, Port}) when tuple_size(Ip) =:= 4, is_integer(Port) ->
    iolist_to_binary([inet:ntoa(Ip), $:, integer_to_list(Port)]);
address({Ip, Port}) when tuple_size(Ip) =:= 8, is_integer(Port) ->
    iolist_to_binary([$[, inet:ntoa(Ip), $], $:, integer_to_list(Port)]);
address(_) ->
    undefined.

%% Any term as bounded text.
-spec text(term()) -> binary().
text(Atom) when is_atom(Atom) -> cut(atom_to_binary(Atom, utf8));
text(Binary) when is_binary(Binary) -> cut(Binary);
text(Term) -> cut(iolist_to_binary(io_lib:format("~0P", [Term, 12]))).

cut(Binary) ->
    binary:part(Binary, 0, min(byte_size(Binary), ?MAX_TEXT)).
