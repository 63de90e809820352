-module(bench_server).
-behaviour(gen_server).
-export([init/1, handle_call/3, handle_cast/2]).

init(Main) -> Main ! {server, self()}, {ok, 0}.

handle_call({add, Value}, _, State) -> {reply, State + Value, State + Value};
handle_call(get, _, State) -> {reply, State, State}.

handle_cast(Value, State) -> {noreply, State + Value}.
