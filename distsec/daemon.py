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
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from distsec import __version__
from distsec.beam import proc
from distsec.beam.provision import provision
from distsec.config.load import load
from distsec.control.http import ControlServer
from distsec.control.scrape import MetricsSite
from distsec.control.service import Service
from distsec.control.wire import SOCKET_NAME
from distsec.errors import CommandFailed, DistsecError, StoreError
from distsec.model.cluster import ClusterSpec, NodeSpec, OnExit
from distsec.observe.bus import Bus
from distsec.observe.log import EventLog, Logger, log_line, make_logger
from distsec.observe.metrics import Metrics
from distsec.pki import trust
from distsec.pki.authority import Authority
from distsec.pki.keyring import Keyring
from distsec.pki.passphrase import from_descriptor, of_service
from distsec.pki.store import Store
from distsec.supervisor import Supervisor
from distsec.supervisor.machine import LocalMachine
from distsec.supervisor.reload import AppliedInPart, log_findings
from distsec.supervisor.shell_place import LocalShells

RECORD = "orchestrator.json"
RECORD_SCHEMA = 1
FLUSH_SECONDS = 1.0

MAX_OPEN_FILES = 65536
"""Up to which the limit is raised. Nodes inherit it: of a higher one the BEAM makes a larger port table (`+Q`
of erl(1)), of a container's 2^30 one of a gigabyte.
"""

STRAY_LINES = 20
"""Lines of libraries and of the interpreter within STRAY_SECONDS before the rest is only counted."""

STRAY_SECONDS = 10.0


def run(config_path: Path, passphrase_fd: int | None = None) -> int:
    """Runs the orchestrator until SIGTERM or SIGINT; returns the exit code, which is not 0 where nodes were
    to be stopped and one is left. `passphrase_fd`: an open descriptor with the passphrase of the CA's key.
    Raises DistsecError before it runs.
    """
    os.umask(0o077)
    raise_open_files()
    logger = make_logger()
    spec = load(config_path, os.environ)
    log_findings(logger, spec)
    strays = Strays(logger)
    given = None if passphrase_fd is None else from_descriptor(passphrase_fd)
    if given is not None:
        given()  # now: what is started from here on must not find it open
    keyring = Keyring(given or of_service(os.environ, spec.ca_passphrase_file))
    store = Store(Path(spec.state_dir), keyring)

    known: set[str] = set()

    def spoiled(node: NodeSpec, error: DistsecError) -> None:
        """The other nodes are not to suffer for it. One that a reload would add refuses the reload."""
        if known and str(node.name) not in known:
            raise error
        log_line(
            logger, "error", "a node's certificate cannot be used", node=str(node.name), error=str(error)
        )

    def complete(new: ClusterSpec) -> object:
        keyring.passphrase = given or of_service(os.environ, new.ca_passphrase_file)
        report = provision(new, store, time.time(), spoiled=spoiled)
        known.update(str(node.name) for node in new.nodes)
        return report

    with only_one(store), strays.caught():
        report = provision(spec, store, time.time(), spoiled=spoiled)
        known.update(str(node.name) for node in spec.nodes)
        if report.made:
            log_line(logger, "info", "made what was missing", files=len(report.made))
        try:
            left = asyncio.run(_serve(spec, config_path, store, logger, strays, complete))
        except BaseExceptionGroup as group:
            # A TaskGroup wraps even the one error that says why nothing was started.
            errors, _ = group.split(DistsecError)
            if errors is None:
                raise
            raise _first(errors) from None
    return CommandFailed.exit_code if left else 0


def raise_open_files() -> None:
    """Raises the soft limit of open files towards the hard one: each node and each client takes some.

    Nodes inherit it: they could get the old one back only by code between fork and exec.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # it does without
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Strays(logging.Handler):
    """Writes as lines of the log what would otherwise reach stderr as it is: of `logging` (aiohttp,
    asyncio), warnings, and errors that nobody catches. So many lines at a time: whoever talks to a port must
    not be able to fill the disk. `clock` is monotonic, in seconds.
    """

    def __init__(self, logger: Logger, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger
        self._clock = clock
        self._began = clock()
        self._lines = 0
        self._suppressed = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises."""
        try:
            text = record.getMessage()
        except Exception:  # arguments that do not fit, or cannot be shown
            text = str(record.msg)
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self.write(level, text, source=record.name, error=record.exc_info[1] if record.exc_info else None)

    def write(self, level: str, what: str, *, source: str, error: object = None) -> None:
        """A line, or one more that is only counted. For any thread."""
        with contextlib.suppress(Exception):  # nowhere left to tell
            if self._lines >= STRAY_LINES:
                self.flush()
            if self._lines >= STRAY_LINES:
                self._suppressed += 1
                return
            self._lines += 1
            fields: dict[str, Any] = {} if error is None else {"error": repr(error)}
            log_line(self._logger, level, "unexpected", source=source, what=what, **fields)

    def flush(self) -> None:
        """Ends the window, where its time is over, and says how many lines were held back."""
        if self._clock() - self._began < STRAY_SECONDS:
            return
        suppressed, self._suppressed = self._suppressed, 0
        self._began, self._lines = self._clock(), 0
        if suppressed:
            log_line(self._logger, "warning", "unexpected", what="more of the kind", suppressed=suppressed)

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Takes everything of this process as long as the block lasts."""
        root = logging.getLogger()
        handlers, level = root.handlers, root.level
        hooks = sys.unraisablehook, threading.excepthook
        root.handlers = [self]
        root.setLevel(logging.WARNING)
        logging.captureWarnings(True)
        sys.unraisablehook = lambda lost: self.write(
            "error", lost.err_msg or "an error that nobody could catch", source="python", error=lost.exc_value
        )
        threading.excepthook = lambda lost: self.write(
            "error", "a thread failed", source="python", error=lost.exc_value
        )
        try:
            yield
        finally:
            sys.unraisablehook, threading.excepthook = hooks
            logging.captureWarnings(False)
            root.handlers = handlers
            root.setLevel(level)

    def of_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception handler for `loop.set_exception_handler`."""
        self.write("error", str(context.get("message")), source="asyncio", error=context.get("exception"))

    def of_bus(self, subscriber: str, failures: int, error: Exception) -> None:
        """A failure report for `Bus`."""
        self.write("error", f"{subscriber} failed, {failures} times so far", source="bus", error=error)


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


async def _serve(
    spec: ClusterSpec,
    config_path: Path,
    store: Store,
    logger: Logger,
    strays: Strays,
    complete: Callable[[ClusterSpec], object],
) -> list[str]:
    """Returns the nodes that were to be stopped at the end and are left."""
    left: list[str] = []
    bus, metrics, event_log = Bus(on_failure=strays.of_bus), Metrics(), EventLog(logger)
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
        complete=complete,
        place=LocalShells(machine, os.environ),
    )
    ending = asyncio.Event()
    _on_signals(supervisor, ending, logger)
    asyncio.get_running_loop().set_exception_handler(strays.of_loop)
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
        flusher = asyncio.create_task(_flush(event_log, strays))
        stack.callback(flusher.cancel)
        stack.callback(event_log.flush)
        log_line(
            logger, "info", "ready", version=__version__, cluster=spec.name, metrics=where, pid=os.getpid()
        )
        notify("READY=1")
        if spec.carrier.encrypted:
            supervisor.spawn(_try_ca_key(store, logger), "the CA's key")
        await ending.wait()
        supervisor.begin_end()
        notify("STOPPING=1")
        on_exit = supervisor.spec.on_exit
        log_line(logger, "info", "ending", on_exit=str(on_exit))
        if on_exit is OnExit.STOP:
            left = await supervisor.stop_all()
    log_line(logger, "info", "ended")
    return left


async def _try_ca_key(store: Store, logger: Logger) -> None:
    """Opens the CA's key in time to say what keeps it shut. Nodes that have certificates need none."""
    try:
        issuing = await asyncio.to_thread(trust.issuing_directory, store)
        await asyncio.to_thread(lambda: Authority.load(store, issuing).private_key())
    except DistsecError as error:
        log_line(logger, "warning", "no certificate can be issued or renewed here", error=str(error))


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


async def _flush(event_log: EventLog, strays: Strays) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        event_log.flush()
        strays.flush()


def _on_signals(supervisor: Supervisor, ending: asyncio.Event, logger: Logger) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)

    async def reload() -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            await supervisor.reload()
        except AppliedInPart as error:
            log_line(logger, "error", "reload applied in part", error=str(error))
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
