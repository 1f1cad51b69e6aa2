"""How fast events come from a node's ring over its port to metrics and log."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from distsec.beam.link import AgentServer
from distsec.beam.messages import EventKind, LaneEvent, Message
from distsec.beam.provision import agent_key, provision
from distsec.beam.security_events import to_security_event
from distsec.config.load import load
from distsec.observe.bus import Bus
from distsec.observe.log import EventLog, make_logger
from distsec.observe.metrics import Metrics
from distsec.pki.store import Store
from distsec.supervisor.machine import LocalMachine
from scripts.benchmarks.clusters import (
    READY_SECONDS,
    configuration,
    directory,
    node_names,
    resident_megabytes,
)
from scripts.benchmarks.rows import Row

BURST = 8000
"""Events at once: below the ring's 8,192, so that none may be lost."""


def port(quick: bool) -> list[Row]:
    return asyncio.run(_port(3 if quick else 10))


async def _port(rounds: int) -> list[Row]:
    with directory() as place:
        config = place / "distsec.toml"
        node = node_names(1)[0]
        config.write_text(configuration({node: None}))
        spec = load(config, os.environ)
        store = Store(Path(spec.state_dir))
        provision(spec, store, time.time())
        machine = LocalMachine(spec, store, os.environ)
        expected = BURST * rounds
        seen, bus, metrics = Tally(expected), Bus(), Metrics()
        with (place / "events.log").open("w") as log:
            event_log = EventLog(make_logger(log))
            bus.subscribe(event_log, "log")
            bus.subscribe(metrics.event, "metrics")

            def on_message(name: str, message: Message) -> None:
                if isinstance(message, LaneEvent) and message.kind is EventKind.REFUSAL:
                    bus.publish(to_security_event(message, name, time.time()))
                    seen.add(message)

            key = agent_key(store, spec.nodes[0].name)
            where = store.path(f"nodes/{node}/agent.sock")
            server = AgentServer(node, where, key, lambda *_: True, on_message, _ignore, _ignore)
            await server.start()
            flags = machine.outside(spec.nodes[0])["env"]["ERL_AFLAGS"]
            environment = {**os.environ, "ERL_AFLAGS": flags}
            source = (
                'F = #{identity => <<"spiffe://bench/node/127.0.0.1/x">>, address => <<"127.0.0.1:40000">>},'
                "Wait = fun W() -> case distsec_ring:read(refusals, 0, 10000, pass) of {[], _} -> ok;"
                " _ -> receive after 5 -> W() end end end,"
                "Put = fun() -> element(1, timer:tc(fun() ->"
                f" [distsec_report:refusal(in, not_allowed, F) || _ <- lists:seq(1, {BURST})] end)) end,"
                "receive after 1500 -> ok end,"
                f"T = lists:sum([begin P = Put(), Wait(), P end || _ <- lists:seq(1, {rounds})]),"
                'io:format("~b~n", [T]).'
            )
            process = await asyncio.create_subprocess_exec(
                "erl", "-noinput", "-eval", source, env=environment, stdout=asyncio.subprocess.PIPE
            )
            before = resident_megabytes(os.getpid())
            try:
                await asyncio.wait_for(seen.complete.wait(), READY_SECONDS)
                grown = resident_megabytes(os.getpid()) - before
                assert process.stdout is not None
                pushed = int(await asyncio.wait_for(process.stdout.readline(), 30)) / 1e6
            finally:
                process.kill()
                await process.wait()
                await server.close()
    rate, push_rate = expected / seen.seconds, expected / pushed
    return [
        Row(
            "port: events/s, ring to metrics and log",
            f"{rate:,.0f}",
            f"into the ring {push_rate:,.0f}",
            rate / push_rate,
        ),
        Row(f"port: lost of {expected:,} (bursts of {BURST:,})", f"{expected - seen.count}"),
        Row("port: memory grown meanwhile", f"{grown:.0f} MB"),
    ]


class Tally:
    """Counts events; the clock runs within a burst only (the node waits for the last acknowledgement)."""

    def __init__(self, expected: int) -> None:
        self.count = 0
        self.seconds = 0.0
        self.complete = asyncio.Event()
        self._expected = expected
        self._since: float | None = None

    def add(self, message: LaneEvent) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
        self.count += 1
        if self.count % BURST == 0:
            self.seconds += now - self._since
            self._since = None
        if self.count == self._expected:
            self.complete.set()


def _ignore(*_: object) -> None: ...
