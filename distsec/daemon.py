"""`distsec run`: wires configuration, state, supervisor, control socket and metrics together; signals, and
the word to systemd.

Whatever all nodes need (a configuration, the state directory, an `erl`) is seen to before anything is
started, and what is wrong raised as the DistsecError that says so. One node's own trouble is left to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from distsec import __version__
from distsec.beam.hosts import load_cluster
from distsec.beam.privileges import keep_from_children, node_accounts, shared
from distsec.beam.provision import provision
from distsec.config.binding import Network
from distsec.control.http import ControlServer
from distsec.control.metrics_port import MetricsPort
from distsec.control.presence import Presence, only_one, recorded
from distsec.control.service import Service
from distsec.control.wire import SOCKET_NAME
from distsec.errors import CommandFailed, DistsecError, StoreError
from distsec.model.cluster import ClusterSpec, NodeSpec, OnExit
from distsec.observe.bus import Bus
from distsec.observe.journald import open_log
from distsec.observe.log import EventLog, Logger, log_line
from distsec.observe.metrics import Metrics
from distsec.observe.sd_notify import Notifier, extend_line, reloading_line, status_line
from distsec.observe.strays import Strays
from distsec.pki import trust
from distsec.pki.authority import Authority
from distsec.pki.keyring import Keyring
from distsec.pki.passphrase import from_descriptor, of_service
from distsec.pki.store import Store
from distsec.supervisor import Supervisor
from distsec.supervisor.machine import LocalMachine
from distsec.supervisor.node_users import know
from distsec.supervisor.operation import END_SLACK_SECONDS
from distsec.supervisor.persistence import persistently
from distsec.supervisor.readiness import EXTEND_SECONDS, Readiness
from distsec.supervisor.reload import log_findings
from distsec.supervisor.shell_place import LocalShells
from distsec.supervisor.threads import thread_pool

FLUSH_SECONDS = 1.0

MAX_OPEN_FILES = 65536
"""Up to which the limit is raised. Nodes inherit it: of a higher one the BEAM makes a larger port table (`+Q`
of erl(1)), of a container's 2^30 one of a gigabyte.
"""


def run(config_path: Path, passphrase_fd: int | None = None, network: Network | None = None) -> int:
    """Runs the orchestrator until SIGTERM or SIGINT; returns the exit code, which is not 0 where nodes were
    to be stopped and one is left. `passphrase_fd`: an open descriptor with the passphrase of the CA's key.
    `network`: what the command line says of where to listen.
    Raises DistsecError before it runs.
    """
    notifier = Notifier.take(os.environ)
    if not faulthandler.is_enabled():
        with contextlib.suppress(RuntimeError, ValueError, OSError):  # there is no stderr
            faulthandler.enable()  # a watchdog's SIGABRT says where it hung
    try:
        with _early_reloads() as early:
            return _run(
                partial(load_cluster, config_path, os.environ, network), passphrase_fd, notifier, early
            )
    except DistsecError as error:
        notifier.send(status_line(_one_line(error)))
        raise


@contextlib.contextmanager
def _early_reloads() -> Iterator[list[int]]:
    """Each SIGHUP that comes before the loop listens, which would end us: perhaps what was changed has been
    read already, perhaps it has not.
    """
    came: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGHUP, before or signal.SIG_DFL)


def _run(
    reread: Callable[[], ClusterSpec], passphrase_fd: int | None, notifier: Notifier, early: list[int]
) -> int:
    os.umask(0o077)
    keep_from_children()
    raise_open_files()
    notifier.send(extend_line(EXTEND_SECONDS), status_line("starting"))
    logger = open_log(os.environ)
    spec = reread()
    log_findings(logger, spec)
    strays = Strays(logger)
    given = None if passphrase_fd is None else from_descriptor(passphrase_fd)
    if given is not None:
        given()  # now: what is started from here on must not find it open
    keyring = Keyring(given or of_service(os.environ, spec.ca_passphrase_file))
    accounts = node_accounts(spec)
    for what in shared(accounts):
        log_line(logger, "warning", "configuration", detail=what)
    store = Store(Path(spec.state_dir), keyring)
    know(store, accounts)

    known: set[str] = set()

    def spoiled(node: NodeSpec, error: DistsecError) -> None:
        """The other nodes are not to suffer for it. One that a reload would add refuses the reload."""
        if known and str(node.name) not in known:
            raise error
        log_line(
            logger, "error", "a node's certificate cannot be used", node=str(node.name), error=str(error)
        )

    def complete(new: ClusterSpec) -> object:
        node_accounts(new)
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
            left = asyncio.run(_serve(spec, reread, store, logger, strays, complete, notifier, early))
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


async def _serve(
    spec: ClusterSpec,
    reread: Callable[[], ClusterSpec],
    store: Store,
    logger: Logger,
    strays: Strays,
    complete: Callable[[ClusterSpec], object],
    notifier: Notifier,
    early: list[int],
) -> list[str]:
    """Returns the nodes that were to be stopped at the end and are left."""
    left: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_default_executor(thread_pool())
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
        reread=reread,
        complete=complete,
        place=LocalShells(machine, os.environ),
        beat=lambda: readiness.tick(),
    )
    readiness = Readiness(supervisor, notifier, loop.time)
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.set_exception_handler(strays.of_loop)
    async with contextlib.AsyncExitStack() as stack:
        scraped = MetricsPort(metrics, spec.metrics_listen, partial(log_line, logger))
        stack.push_async_callback(scraped.close)
        await scraped.open()
        # Before the nodes: a socket that cannot be had is found out while nothing runs.
        control = ControlServer(
            Service(supervisor),
            store.path(SOCKET_NAME),
            is_managed=supervisor.is_managed,
            begun=supervisor.operation.begun.wait,
            on_failure=lambda what, error: log_line(logger, "error", "control", what=what, error=repr(error)),
        )
        stack.push_async_callback(control.close)
        await control.start()
        await stack.enter_async_context(supervisor.running())
        _reload_on_signal(supervisor, ending, notifier, readiness, early)
        stack.callback(bus.close)
        presence = stack.enter_context(recorded(store, scraped.where, partial(_no_record, logger)))
        flush = partial(_flush, event_log, strays, control, scraped, presence, logger)
        flusher = asyncio.create_task(persistently(flush, "flush", partial(log_line, logger)))
        stack.callback(flusher.cancel)
        stack.callback(event_log.flush)
        where = scraped.where
        log_line(
            logger, "info", "ready", version=__version__, cluster=spec.name, metrics=where, pid=os.getpid()
        )
        if spec.carrier.encrypted:
            supervisor.spawn(_try_ca_key(store, logger), "the CA's key")
        await ending.wait()
        supervisor.begin_end()
        readiness.end()
        on_exit = supervisor.spec.on_exit
        stopping = on_exit is OnExit.STOP
        seconds = EXTEND_SECONDS + stopping * (supervisor.spec.stop_deadline_seconds + END_SLACK_SECONDS)
        what = "stopping the nodes" if stopping else "ending; the nodes go on"
        notifier.send("STOPPING=1", extend_line(seconds), status_line(what))
        log_line(logger, "info", "ending", on_exit=str(on_exit))
        if stopping:
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


def _no_record(logger: Logger, error: StoreError) -> None:
    log_line(logger, "warning", "who runs here is not on record; it is tried again", error=str(error))


async def _flush(
    event_log: EventLog,
    strays: Strays,
    control: ControlServer,
    scraped: MetricsPort,
    presence: Presence,
    logger: Logger,
) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        event_log.flush()
        strays.flush()
        await scraped.open()
        presence.keep(scraped.where)
        with contextlib.suppress(DistsecError):  # tried again in a second
            if await control.mend():
                log_line(logger, "warning", "the control socket was gone, and is made anew")


def _reload_on_signal(
    supervisor: Supervisor,
    ending: asyncio.Event,
    notifier: Notifier,
    readiness: Readiness,
    early: list[int],
) -> None:
    async def reload() -> None:
        told = readiness.ready and notifier.send(reloading_line())
        try:
            with contextlib.suppress(DistsecError):  # told already, as an event with the reason
                await supervisor.reload()
        finally:
            if told and not ending.is_set():
                notifier.send("READY=1")

    def begin() -> None:
        supervisor.spawn(reload(), "reload")

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, begin)
    if early:
        begin()


def _one_line(error: DistsecError) -> str:
    lines = str(error).splitlines()
    return lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")


def _first(group: BaseExceptionGroup[DistsecError]) -> DistsecError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DistsecError)
    return error
