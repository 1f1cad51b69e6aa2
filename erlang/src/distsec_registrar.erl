%% Registers the node with an epmd (`epmd = "loopback"`), for whoever asks epmd where a node
%% listens. Nothing of ours asks it: names are resolved from the policy, and any user of the host
%% may register any name there. So it is done beside the boot: an epmd that is not there, does not
%% answer or has given the name to somebody else keeps no node from starting, and is tried again.
-module(distsec_registrar).
-behaviour(gen_server).

-export([start_link/0, listening/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(PORT, {distsec, epmd_registers}).
-define(AGAIN_MS, 2000).

%% `client`: OTP's own client of epmd, which registers again by itself after epmd was restarted.
%% `told`: the last thing that was logged, so that it is logged once.
-type state() :: #{client := pid() | undefined, told := term()}.

-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    case distsec_guard:guard() of
        #{epmd := loopback} -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []);
        _ -> ignore
    end.

%% The node is about to listen on this port. Waits for nothing: net_kernel calls this.
-spec listening(inet:port_number()) -> ok.
listening(Port) ->
    persistent_term:put(?PORT, Port),
    gen_server:cast(?MODULE, register).

-spec init([]) -> {ok, state()}.
init([]) ->
    process_flag(trap_exit, true),
    self() ! register, % after a restart, when nobody casts any more
    {ok, #{client => undefined, told => nothing}}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, ok, state()}.
handle_call(_, _From, State) ->
    {reply, ok, State}.

-spec handle_cast(register, state()) -> {noreply, state()}.
handle_cast(register, State) ->
    {noreply, register_node(State)}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info(register, State) ->
    {noreply, register_node(State)};
handle_info({'EXIT', Client, _}, #{client := Client} = State) ->
    erlang:send_after(?AGAIN_MS, self(), register),
    {noreply, State#{client := undefined}};
handle_info(_, State) ->
    {noreply, State}.

register_node(State) ->
    case persistent_term:get(?PORT, undefined) of
        undefined -> State; % it does not listen yet
        Port -> register_node(Port, client(State))
    end.

register_node(_Port, #{client := undefined} = State) ->
    State;
register_node(Port, State) ->
    #{node := Node, interface := Interface} = distsec_guard:guard(),
    [Head, _Host] = binary:split(Node, <<"@">>),
    Family = case tuple_size(Interface) of 4 -> inet; 8 -> inet6 end,
    try erl_epmd:register_node(binary_to_list(Head), Port, Family) of
        {ok, _Creation} ->
            told(registered, State);
        {error, already_registered} ->
            State;
        {error, Why} ->
            again(Why, State);
        Other ->
            again(Other, State)
    catch
        exit:_ -> State % its end is told by a message
    end.

again(Why, State) ->
    erlang:send_after(?AGAIN_MS, self(), register),
    told(Why, State).

told(What, #{told := What} = State) ->
    State;
told(registered, #{told := nothing} = State) ->
    State#{told := registered};
told(registered, State) ->
    logger:notice("distsec: epmd registers this node now"),
    State#{told := registered};
told(Why, State) ->
    logger:warning("distsec: epmd does not register this node: ~0P; it is tried again, and links "
                   "do not depend on it", [Why, 10]),
    State#{told := Why}.

client(#{client := undefined} = State) ->
    case erl_epmd:start_link() of
        {ok, Pid} ->
            State#{client := Pid};
        _ ->
            erlang:send_after(?AGAIN_MS, self(), register),
            State
    end;
client(State) ->
    State.
