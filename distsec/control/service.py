"""The use cases of the control socket: what comes in is checked here, once, whatever adapter brought it.

No HTTP, no sockets: an adapter calls a method with plain values and gets a JSON object, or a DistsecError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from distsec.control.attach import MAX_PROGRAM_CHARACTERS
from distsec.control.wire import SCHEMA
from distsec.core.rotation import Command as CaCommand
from distsec.errors import NameInvalid, NotFound, UsageError
from distsec.model.cluster import ClusterSpec, NodeState
from distsec.model.names import MAX_NAME_BYTES, NodeName
from distsec.model.shells import Operator
from distsec.observe.bus import Bus, Follower, Published
from distsec.observe.metrics import Metrics
from distsec.pki.crl import RevocationReason
from distsec.pki.subject import identity_from_text

MAX_NAMES = 1000
MAX_IDENTITY = 2048
"""Bytes of a SPIFFE ID (SPIFFE-ID, section 2.3)."""

MAX_PID = 1 << 22
"""PID_MAX_LIMIT of Linux on 64 bits (include/linux/threads.h)."""

MAX_ADOPT_SECONDS = 3600

ACTIONS = ("start", "stop", "restart")

_AT_REST = frozenset({NodeState.STOPPED, NodeState.FATAL})


class Cookies(Protocol):
    """See supervisor.cookie_rotation.CookieRotator."""

    async def status(self) -> dict[str, Any]: ...
    async def rotate(self, elsewhere: bool) -> dict[str, Any]: ...
    async def give_up(self) -> dict[str, Any]: ...


class Renewals(Protocol):
    """See supervisor.renewal.Renewal."""

    async def renew(self, names: list[str], recycle: bool) -> dict[str, Any]: ...


class Authority(Protocol):
    """See supervisor.ca_rotation.CaRotation."""

    async def status(self) -> dict[str, Any]: ...
    async def command(self, command: CaCommand, elsewhere: bool) -> dict[str, Any]: ...


class Orchestrator(Protocol):
    """What the control service needs of the supervisor. Each method does one thing at a time: the supervisor
    serialises those that change the policy. `bus` and `metrics` are the ones that everything is published
    to."""

    @property
    def spec(self) -> ClusterSpec: ...
    @property
    def bus(self) -> Bus: ...
    @property
    def metrics(self) -> Metrics: ...

    def status(self) -> dict[str, Any]:
        """The document of `distsec status --json`."""
        ...

    async def start(self, names: list[str]) -> object:
        """Returns when each is RUNNING. Raises CommandFailed with the reason of the first that is not."""
        ...

    async def stop(self, names: list[str]) -> object:
        """Returns when each is STOPPED."""
        ...

    async def restart(self, names: list[str]) -> object:
        """stop, then start."""
        ...

    async def adopt(self, name: str, pid: int | None, seconds: float | None) -> dict[str, Any]:
        """{"node", "pid", "command"}, when it is RUNNING. Raises CommandFailed (what is missing),
        UsageError."""
        ...

    async def allow(self, name: str, identity: str | None) -> dict[str, Any]:
        """{"generation", "acknowledged": [names]}. Raises NotAcknowledged, after rolling back, or
        NotFound."""
        ...

    async def deny(self, name: str, compromised: bool, since: float) -> dict[str, Any]:
        """Like `allow`; a denial is kept though it is not acknowledged by all."""
        ...

    async def revoke(self, what: str, reason: RevocationReason) -> dict[str, Any]:
        """{"serials", "identity", "generation", "acknowledged", "current_of", "lists"}; like `deny`."""
        ...

    async def serve(self, names: list[str]) -> dict[str, Any]:
        """{"done", "nodes": [one each]}: whether they serve what is installed for them, and why not."""
        ...

    async def told_of_issue(self, serial: str) -> dict[str, Any]:
        """Raises NotFound unless such a certificate was issued here."""
        ...

    async def certificates(self) -> dict[str, Any]:
        """{"certificates": […], "revoked": [serials], …}."""
        ...

    @property
    def cookies(self) -> Cookies: ...
    @property
    def authority(self) -> Authority: ...
    @property
    def renewal(self) -> Renewals: ...

    async def reload(self) -> dict[str, Any]:
        """Re-reads the configuration. Raises ConfigError, having changed nothing."""
        ...

    async def shell(self, name: str, operator: Operator) -> dict[str, Any]:
        """{"node", "shell", "words", "directory", "uid", "gid"}: what the operator's process is to become.
        Raises NotFound, or CommandFailed where the node takes no shell now."""
        ...

    async def tool(self, name: str, operator: Operator, program: str) -> dict[str, Any]:
        """{"node", "shell", "env", "directory", "uid", "gid"}: in which environment the operator's process is
        to run `program`. Raises as `shell`."""
        ...

    def environment(self, name: str) -> dict[str, Any]:
        """{"env": {…}, "files": {…}} for a node that something else starts. Raises NotFound."""
        ...


class Service:
    """All that an operator can ask of a running orchestrator."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator

    def status(self) -> dict[str, Any]:
        """The document of `distsec status --json`."""
        return {"schema": SCHEMA, **self._orchestrator.status()}

    async def nodes(self, action: str, names: object, everything: object = False) -> dict[str, Any]:
        """`action` (one of ACTIONS) on the named nodes, or on all that it can be done to; answers when it
        is done, with their names."""
        if action not in ACTIONS:
            raise UsageError(f"{action[:40]!a} is none of {', '.join(ACTIONS)}")
        chosen = self._everything(action) if everything is True else self._known(names)
        operation = {
            "start": self._orchestrator.start,
            "stop": self._orchestrator.stop,
            "restart": self._orchestrator.restart,
        }[action]
        await operation(chosen)
        return {"schema": SCHEMA, "action": action, "nodes": chosen}

    async def adopt(self, name: object, pid: object = None, seconds: object = None) -> dict[str, Any]:
        """Takes over the VM of a node that something else started; `seconds`: how long its hello is waited
        for."""
        (chosen,) = self._known([name])
        if pid is not None and (type(pid) is not int or not 2 <= pid <= MAX_PID):
            raise UsageError("that is no pid")
        if seconds is not None and (
            isinstance(seconds, bool)
            or not isinstance(seconds, int | float)
            or not 0 < seconds <= MAX_ADOPT_SECONDS
        ):
            raise UsageError(f"the timeout is no number from 0 to {MAX_ADOPT_SECONDS} seconds")
        limit = None if seconds is None else float(seconds)
        return {"schema": SCHEMA, **await self._orchestrator.adopt(chosen, pid, limit)}

    async def allow(self, name: object, identity: object = None) -> dict[str, Any]:
        """Lets `name` in; `identity` None is the one that a node of that name has in this cluster."""
        checked = str(_name(name))
        wanted = None if identity is None else _identity(identity)
        return {"schema": SCHEMA, **await self._orchestrator.allow(checked, wanted)}

    async def deny(self, name: object, compromised: object = False, since: object = 0.0) -> dict[str, Any]:
        """Keeps `name` out and ends its links. `compromised`: and cleans whom it has reached since `since`
        (Unix seconds)."""
        checked = str(_name(name))
        if not isinstance(compromised, bool):
            raise UsageError("compromised is true or false")
        if isinstance(since, bool) or not isinstance(since, int | float) or not 0 <= since <= 2**53:
            raise UsageError("since is no time", do="write Unix seconds")
        if since and not compromised:
            raise UsageError("a time is of use for a compromised node only", do="add --compromised")
        return {"schema": SCHEMA, **await self._orchestrator.deny(checked, compromised, float(since))}

    async def revoke(self, what: object, reason: object = None) -> dict[str, Any]:
        """Revokes the certificate of a serial (hexadecimal), or that a node has, or an identity; `reason`:
        a pki.crl.RevocationReason.
        """
        longest = MAX_IDENTITY if isinstance(what, str) and ":" in what[:9] else MAX_NAME_BYTES
        if not isinstance(what, str) or not 0 < len(what) <= longest:
            raise UsageError(
                "nothing is named", do="name a serial, a node as name@host, or an identity as spiffe://…"
            )
        given = next((each for each in RevocationReason if reason in {None, each}), None)
        if given is None:
            raise UsageError(f"the reason is none of {', '.join(RevocationReason)}")
        return {"schema": SCHEMA, **await self._orchestrator.revoke(what, given)}

    async def serve(self, names: object) -> dict[str, Any]:
        """Has managed nodes serve the certificates that were installed for them by somebody else."""
        return {"schema": SCHEMA, **await self._orchestrator.serve(self._known(names))}

    async def told_of_issue(self, serial: object) -> dict[str, Any]:
        """Has it on record that a certificate was issued for a node that is not managed here."""
        if not isinstance(serial, str) or len(serial) > MAX_NAME_BYTES:
            raise UsageError("a serial number is missing")
        return {"schema": SCHEMA, **await self._orchestrator.told_of_issue(serial)}

    async def certificates(self) -> dict[str, Any]:
        """The document of `distsec certs list --json`."""
        return {"schema": SCHEMA, **await self._orchestrator.certificates()}

    async def cookies(self) -> dict[str, Any]:
        """The document of `distsec cookie status --json`."""
        return {"schema": SCHEMA, **await self._orchestrator.cookies.status()}

    async def rotate_cookies(self, give_up: object = False, elsewhere: object = False) -> dict[str, Any]:
        """Answers when the old secret is forgotten, or with `give_up` when the new one is."""
        if not isinstance(give_up, bool) or not isinstance(elsewhere, bool):
            raise UsageError("give_up and elsewhere are true or false")
        if give_up:
            return {"schema": SCHEMA, **await self._orchestrator.cookies.give_up()}
        return {"schema": SCHEMA, **await self._orchestrator.cookies.rotate(elsewhere)}

    async def renew(
        self, names: object, everything: object = False, recycle: object = False
    ) -> dict[str, Any]:
        """New keys and certificates; answers when they are served, or it is known why one is not."""
        if not isinstance(recycle, bool):
            raise UsageError("recycle is true or false")
        chosen = self._all() if everything is True else self._known(names)
        return {"schema": SCHEMA, **await self._orchestrator.renewal.renew(chosen, recycle)}

    async def ca_rotation(self) -> dict[str, Any]:
        """The document of `distsec certs rotate-ca status --json`."""
        return {"schema": SCHEMA, **await self._orchestrator.authority.status()}

    async def rotate_ca(self, phase: object, elsewhere: object = False) -> dict[str, Any]:
        """One step of a rotation of the CA; answers when it is done."""
        command = next((each for each in CaCommand if each == phase), None)
        if command is None:
            raise UsageError(f"the step is none of {', '.join(CaCommand)}")
        if not isinstance(elsewhere, bool):
            raise UsageError("elsewhere is true or false")
        return {"schema": SCHEMA, **await self._orchestrator.authority.command(command, elsewhere)}

    async def reload(self) -> dict[str, Any]:
        """What SIGHUP does."""
        return {"schema": SCHEMA, **await self._orchestrator.reload()}

    async def shell(self, name: object, operator: Operator) -> dict[str, Any]:
        """Prepares a shell at `name` for the process of `operator`, whom the kernel has named."""
        return {"schema": SCHEMA, **await self._orchestrator.shell(str(_name(name)), operator)}

    async def tool(self, name: object, operator: Operator, program: object) -> dict[str, Any]:
        """Prepares the run of an application's tool against `name` for the process of `operator`."""
        if not isinstance(program, str) or not 0 < len(program) <= MAX_PROGRAM_CHARACTERS:
            raise UsageError("the program has no name")
        return {"schema": SCHEMA, **await self._orchestrator.tool(str(_name(name)), operator, program)}

    def environment(self, name: str) -> dict[str, Any]:
        """The document of `distsec env NODE --json`."""
        return {"schema": SCHEMA, **self._orchestrator.environment(self._known([name])[0])}

    def events(self, *, since: float = 0.0, after: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """The recent events, oldest first; see Bus.recent."""
        return [
            event_document(published)
            for published in self._orchestrator.bus.recent(since=since, after=after, limit=limit)
        ]

    def follow(self) -> Follower:
        """The events from now on."""
        return self._orchestrator.bus.follow()

    def _everything(self, action: str) -> list[str]:
        """Who `--all` means: for a stop those that run, else those that have a command."""
        if action == "stop":
            nodes = self._orchestrator.status()["nodes"]
            return [node["name"] for node in nodes if node["state"] not in _AT_REST]
        return [str(node.name) for node in self._orchestrator.spec.nodes if node.command]

    def _all(self) -> list[str]:
        return [str(node.name) for node in self._orchestrator.spec.nodes]

    def _known(self, names: object) -> list[str]:
        """Names of managed nodes, each once. Raises UsageError, NameInvalid, or NotFound with the known
        names."""
        if not isinstance(names, Sequence) or isinstance(names, str | bytes) or not names:
            raise UsageError("no node is named", do="name one or more, or use --all")
        if len(names) > MAX_NAMES:
            raise UsageError(f"more than {MAX_NAMES} nodes are named", do="use --all")
        chosen = [str(name) for name in dict.fromkeys(map(_name, names))]
        managed = self._all()
        unknown = [name for name in chosen if name not in managed]
        if unknown:
            raise NotFound(
                f"{', '.join(unknown[:5])}: no such managed node",
                do=f"the managed nodes are: {', '.join(managed[:20]) or 'none'}",
            )
        return chosen


def event_document(published: Published) -> dict[str, Any]:
    """One event as a line of `distsec events --json`."""
    return {"id": published.id, **published.event.as_dict()}


def _identity(value: object) -> str:
    """What the caller wrote, as it is kept (`model.identities`)."""
    if not isinstance(value, str) or len(value) > MAX_IDENTITY:
        raise UsageError(
            "the identity is no text, or too long", do="write it as spiffe://CLUSTER/node/HOST/NAME"
        )
    try:
        return identity_from_text(value)
    except NameInvalid as error:
        raise UsageError(error.what, do=error.do) from None


def _name(value: object) -> NodeName:
    if not isinstance(value, str):
        raise UsageError("a node name is missing", do="name a node as name@host")
    return NodeName.parse(value)
