%% The same work as the adapters do, by OTP's supervisor:  erl -noshell -pa DIR -run bench main WORK NUMBERS...
%% prints one line of JSON.
-module(bench).
-behaviour(supervisor).
-export([main/1, init/1, start_supervisor/1, start_idle/0, start_crasher/3, start_victim/1, start_member/2,
         start_server/1, start_leaf/1]).

main([Work | Arguments]) ->
    logger:set_primary_config(level, none),
    process_flag(trap_exit, true),
    io:format("~s~n", [json(work(Work, [list_to_integer(A) || A <- Arguments]))]),
    halt(0).

json(Pairs) -> ["{", lists:join(",", [io_lib:format("\"~s\":~.9f", [K, float(V)]) || {K, V} <- Pairs]), "}"].

now_s() -> erlang:monotonic_time(nanosecond) / 1.0e9.

%% --- supervisors

init(FlagsAndSpecs) -> {ok, FlagsAndSpecs}.

start_supervisor(FlagsAndSpecs) -> supervisor:start_link(?MODULE, FlagsAndSpecs).

start(Strategy, Specs) -> start_supervisor({flags(Strategy, 1000000000), Specs}).

flags(Strategy, Intensity) -> #{strategy => Strategy, intensity => Intensity, period => 1}.

child(Id, Function, Arguments) -> #{id => Id, start => {?MODULE, Function, Arguments}}.

process(Body) -> {ok, proc_lib:spawn_link(Body)}.

stay() -> receive stop -> ok end.

%% --- work

work("start_stop", [N]) ->
    Before = kilobytes("VmRSS"),
    Begin = now_s(),
    Specs = [child(I, start_idle, []) || I <- lists:seq(1, N)],
    Declared = now_s(),
    {ok, Supervisor} = start(one_for_one, Specs),
    Up = now_s(),
    Peak = kilobytes("VmHWM"),
    Stop = now_s(),
    unlink(Supervisor),
    Monitor = monitor(process, Supervisor),
    exit(Supervisor, shutdown),
    receive {'DOWN', Monitor, _, _, _} -> ok end,
    [{declare_s, Declared - Begin}, {start_s, Up - Declared}, {stop_s, now_s() - Stop},
     {kb_per_child, (Peak - Before) / N}];
work("storm", [N]) ->
    Counter = counters:new(1, []),
    Begin = now_s(),
    {ok, _} = start(one_for_one, [child(leaf, start_crasher, [self(), Counter, N])]),
    receive done -> ok end,
    [{per_s, N / (now_s() - Begin)}];
work("latency", [Siblings, N]) ->
    Specs = [child(I, start_idle, []) || I <- lists:seq(1, Siblings)],
    {ok, _} = start(one_for_one, Specs ++ [child(victim, start_victim, [self()])]),
    Victim = receive {up, Pid, _} -> Pid end,
    Seconds = lists:sort(crash(Victim, N)),
    [{p50_s, lists:nth(N div 2 + 1, Seconds)}, {p99_s, lists:nth(min(N, N * 99 div 100 + 1), Seconds)}];
work("group", [N]) ->
    {ok, _} = start(one_for_all, [child(I, start_member, [self(), I]) || I <- lists:seq(1, N)]),
    Culprit = all_up(N, N div 2, none),
    Begin = now_s(),
    Culprit ! crash,
    all_up(N, N div 2, none),
    [{s, now_s() - Begin}];
work("call", [N, Callers]) ->
    Server = server(),
    Begin = now_s(),
    Main = self(),
    [spawn_link(fun() -> [add(Server) || _ <- lists:seq(1, N div Callers)], Main ! finished end)
     || _ <- lists:seq(1, Callers)],
    [receive finished -> ok end || _ <- lists:seq(1, Callers)],
    [{per_s, N div Callers * Callers / (now_s() - Begin)}];
work("send", [N]) ->
    Server = server(),
    Begin = now_s(),
    [gen_server:cast(Server, 1) || _ <- lists:seq(1, N)],
    N = gen_server:call(Server, get, infinity),
    [{per_s, N / (now_s() - Begin)}];
work("deep", [Depth]) ->
    Flags = flags(one_for_one, 0),
    Nest = fun(I, Spec) -> (child(I, start_supervisor, [{Flags, [Spec]}]))#{type => supervisor} end,
    Spec = lists:foldl(Nest, child(leaf, start_leaf, [self()]), lists:seq(1, Depth)),
    {ok, Root} = start_supervisor({Flags, [Spec]}),
    Monitor = monitor(process, Root),
    Leaf = receive {leaf, Pid} -> Pid end,
    Begin = now_s(),
    Leaf ! crash,
    receive {'DOWN', Monitor, _, _, _} -> ok end,
    [{s, now_s() - Begin}].

kilobytes(Field) ->
    {ok, Status} = file:read_file("/proc/self/status"),
    {match, [Number]} = re:run(Status, Field ++ ":\\s+(\\d+)", [{capture, [1], list}]),
    list_to_integer(Number).

crash(_, 0) -> [];
crash(Victim, N) ->
    timer:sleep(1),
    Victim ! crash,
    receive {up, Next, Up} -> receive {crashed, At} -> [Up - At | crash(Next, N - 1)] end end.

all_up(0, _, Culprit) -> Culprit;
all_up(N, Number, Culprit) ->
    receive
        {up, Number, Pid} -> all_up(N - 1, Number, Pid);
        {up, _, _} -> all_up(N - 1, Number, Culprit)
    end.

server() ->
    {ok, _} = start(one_for_one, [child(server, start_server, [self()])]),
    receive {server, Pid} -> Pid end.

add(Server) -> gen_server:call(Server, {add, 1}, infinity).

%% --- children

start_idle() -> process(fun stay/0).

start_crasher(Main, Counter, N) ->
    process(fun() ->
        counters:add(Counter, 1, 1),
        case counters:get(Counter, 1) > N of
            true -> Main ! done, stay();
            false -> exit(boom)
        end
    end).

start_victim(Main) ->
    process(fun() ->
        Main ! {up, self(), now_s()},
        receive crash -> Main ! {crashed, now_s()}, exit(boom) end
    end).

start_member(Main, Number) ->
    process(fun() -> Main ! {up, Number, self()}, receive crash -> exit(boom) end end).

start_leaf(Main) -> process(fun() -> Main ! {leaf, self()}, receive crash -> exit(boom) end end).

start_server(Main) -> gen_server:start_link(bench_server, Main, []).
