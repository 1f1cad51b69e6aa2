"""`distsec run`: wires configuration, state, supervisor, control socket and metrics together; signals;
sd_notify.

Whatever can be wrong beforehand (configuration, state directory, ports, a missing `erl`) is found out before
anything is started, and raised as the DistsecError that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from distsec import __version__
from distsec.beam import proc
from distsec.beam.provision import provision
from distsec.config.load import load
from distsec.control.http import ControlServer
from distsec.control.scrape import MetricsSite
from distsec.control.service import Service
from distsec.control.wire import SOCKET_NAME
from distsec.errors import DistsecError, StoreError
from distsec.model.cluster import ClusterSpec, OnExit
from distsec.observe.bus import Bus
from distsec.observe.log import EventLog, Logger, log_line, make_logger
from distsec.observe.metrics import Metrics
from distsec.pki.store import Store
from distsec.supervisor import Supervisor
from distsec.supervisor.machine import LocalMachine

RECORD = "orchestrator.json"
RECORD_SCHEMA = 1
FLUSH_SECONDS = 1.0


def run(config_path: Path) -> int:
    """Runs the orchestrator until SIGTERM or SIGINT; returns the exit code. Raises DistsecError before it
    runs.
    """
    os.umask(0o077)
    logger = make_logger()
    spec = load(config_path, os.environ)
    for warning in spec.warnings:
        log_line(logger, "warning", "configuration", detail=warning)
    for ignored in spec.not_enforced:
        log_line(logger, "warning", "not_enforced", key=ignored.key, detail=ignored.why)
    store = Store(Path(spec.state_dir))
    with only_one(store):
        report = provision(spec, store, time.time())
        if report.made:
            log_line(logger, "info", "made what was missing", files=len(report.made))
        try:
            asyncio.run(_serve(spec, config_path, store, logger))
        except BaseExceptionGroup as group:
            # A TaskGroup wraps even the one error that says why nothing was started.
            errors, _ = group.split(DistsecError)
            if errors is None:
                raise
            raise _first(errors) from None
    return 0


@contextlib.contextmanager
def only_one(store: Store) -> Iterator[None]:
    """Keeps a second orchestrator off this state directory (flock(2), which ends with the process)."""
    descriptor = os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"another orchestrator runs here{_holder(store)}",
                where=str(store.root),
                do="stop it first, or give this cluster a state_dir of its own",
            ) from None
        yield
    finally:
        os.close(descriptor)


def _holder(store: Store) -> str:
    try:
        return f" (pid {int(json.loads(store.read(RECORD))['pid'])})"
    except (DistsecError, ValueError, KeyError, TypeError):
        return ""


async def _serve(spec: ClusterSpec, config_path: Path, store: Store, logger: Logger) -> None:
    bus, metrics, event_log = Bus(), Metrics(), EventLog(logger)
    bus.subscribe(event_log, "log")
    bus.subscribe(metrics.event, "metrics")
    machine = LocalMachine(spec, store, os.environ)
    supervisor = Supervisor(
        spec,
        machine,
        bus,
        metrics,
        logger,
        reread=lambda: load(config_path, os.environ),
        complete=lambda new: provision(new, store, time.time()),
    )
    ending = asyncio.Event()
    _on_signals(supervisor, ending, logger)
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: log_line(
            logger,
            "error",
            "unexpected",
            what=str(context.get("message")),
            error=repr(context.get("exception")),
        )
    )
    async with contextlib.AsyncExitStack() as stack:
        where = await stack.enter_async_context(_metrics_site(spec, metrics))
        # Before the nodes: a socket that cannot be had is found out while nothing runs.
        control = ControlServer(
            Service(supervisor),
            store.path(SOCKET_NAME),
            is_managed=supervisor.is_managed,
            on_failure=lambda what, error: log_line(logger, "error", "control", what=what, error=repr(error)),
        )
        stack.push_async_callback(control.close)
        await control.start()
        await stack.enter_async_context(supervisor.running())
        stack.callback(bus.close)
        stack.enter_context(_record(store, where))
        flusher = asyncio.create_task(_flush(event_log))
        stack.callback(flusher.cancel)
        stack.callback(event_log.flush)
        log_line(
            logger, "info", "ready", version=__version__, cluster=spec.name, metrics=where, pid=os.getpid()
        )
        notify("READY=1")
        await ending.wait()
        notify("STOPPING=1")
        on_exit = supervisor.spec.on_exit
        log_line(logger, "info", "ending", on_exit=str(on_exit))
        if on_exit is OnExit.STOP:
            await supervisor.stop_all()
    log_line(logger, "info", "ended")


@contextlib.asynccontextmanager
async def _metrics_site(spec: ClusterSpec, metrics: Metrics) -> AsyncIterator[str | None]:
    if spec.metrics_listen is None:
        yield None
        return
    site = MetricsSite(metrics.render, spec.metrics_listen)
    host, port = await site.start()
    try:
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    finally:
        await site.close()


@contextlib.contextmanager
def _record(store: Store, metrics: str | None) -> Iterator[None]:
    """`orchestrator.json`: who runs here and where its metrics are; removed at the end.

    With pid and start time, a reader can tell a record that a killed orchestrator has left.
    """
    document = {
        "schema": RECORD_SCHEMA,
        "pid": os.getpid(),
        "start_time": proc.start_time(os.getpid()),
        "nonce": secrets.token_hex(16),
        "metrics": metrics,
        "control": str(store.path(SOCKET_NAME)),
    }
    store.write(RECORD, json.dumps(document).encode() + b"\n")
    try:
        yield
    finally:
        store.path(RECORD).unlink(missing_ok=True)


async def _flush(event_log: EventLog) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        event_log.flush()


def _on_signals(supervisor: Supervisor, ending: asyncio.Event, logger: Logger) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)

    async def reload() -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            await supervisor.reload()
        except DistsecError as error:
            log_line(logger, "error", "reload refused, the old configuration stays", error=str(error))
        finally:
            notify("READY=1")

    loop.add_signal_handler(signal.SIGHUP, lambda: supervisor.spawn(reload(), "reload"))


def notify(state: str) -> None:
    """sd_notify(3), where systemd asks for it. Never fails: the orchestrator matters more than the word."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.connect("\0" + address[1:] if address[0] == "@" else address)
        notifier.send(state.encode())


def _first(group: BaseExceptionGroup[DistsecError]) -> DistsecError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DistsecError)
    return error
