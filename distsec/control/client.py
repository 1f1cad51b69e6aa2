"""The client of the control socket: blocking, standard library only. One connection a request."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from distsec.control.wire import error_from
from distsec.errors import CommandFailed, PermissionRefused, Unavailable

ANSWER_SECONDS = 10.0
"""For what the orchestrator answers from memory."""

POLICY_SECONDS = 120.0
"""For allow and deny, whose own deadline is acknowledge_deadline_seconds for each of two phases."""

SHELL_SECONDS = 30.0
"""For a shell, whose node is asked first."""

NODES_SECONDS = 3600.0
"""For start and stop, whose own deadlines depend on the number of nodes."""

MAX_ANSWER_BYTES = 64 * 1024 * 1024


class ControlClient:
    """Talks to the orchestrator at `path`. `start_command` is what to type where nobody answers.

    Every method raises Unavailable if nobody answers (in time), PermissionRefused if this user may not ask,
    and whatever DistsecError the orchestrator ended the command with.
    """

    def __init__(self, path: str, *, start_command: str = "distsec run") -> None:
        self._path = path
        self._start_command = start_command

    def health(self) -> dict[str, Any]:
        return self._request("GET", "/v1/health", ANSWER_SECONDS)

    def status(self) -> dict[str, Any]:
        return self._request("GET", "/v1/status", ANSWER_SECONDS)

    def nodes(self, action: str, names: Sequence[str], *, everything: bool = False) -> dict[str, Any]:
        """`action`: start, stop or restart. Returns when it is done."""
        body = {"all": True} if everything else {"names": list(names)}
        return self._request("POST", f"/v1/nodes/{quote(action, safe='')}", NODES_SECONDS, body)

    def adopt(self, name: str, pid: int | None = None, seconds: float | None = None) -> dict[str, Any]:
        """Takes over the VM of `name` that something else started; returns when its guard is proven."""
        given = {"name": name, "pid": pid, "seconds": seconds}
        body = {key: value for key, value in given.items() if value is not None}
        return self._request("POST", "/v1/adopt", NODES_SECONDS + (seconds or 0.0), body)

    def allow(self, name: str, identity: str | None = None) -> dict[str, Any]:
        body = {"name": name} if identity is None else {"name": name, "identity": identity}
        return self._request("POST", "/v1/policy/allow", POLICY_SECONDS, body)

    def deny(self, name: str, *, compromised: bool = False, since: float = 0.0) -> dict[str, Any]:
        body = {"name": name, "compromised": compromised, "since": since}
        seconds = NODES_SECONDS if compromised else POLICY_SECONDS
        return self._request("POST", "/v1/policy/deny", seconds, body)

    def revoke(self, what: str, reason: str | None = None) -> dict[str, Any]:
        """`what`: a serial, a node's name, or an identity."""
        body = {"what": what} if reason is None else {"what": what, "reason": reason}
        return self._request("POST", "/v1/certificates/revoke", POLICY_SECONDS, body)

    def serve(self, names: Sequence[str]) -> dict[str, Any]:
        """Has nodes serve what was installed for them; returns when they do, or it is known why not."""
        return self._request("POST", "/v1/certificates/serve", NODES_SECONDS, {"names": list(names)})

    def told_of_issue(self, serial: str) -> dict[str, Any]:
        """A certificate was issued here for a node that is not managed here."""
        return self._request("POST", "/v1/certificates/issued", ANSWER_SECONDS, {"serial": serial})

    def certificates(self) -> dict[str, Any]:
        return self._request("GET", "/v1/certificates", ANSWER_SECONDS)

    def cookies(self) -> dict[str, Any]:
        return self._request("GET", "/v1/cookies", ANSWER_SECONDS)

    def rotate_cookies(self, *, give_up: bool = False, elsewhere: bool = False) -> dict[str, Any]:
        """Returns when it is done."""
        body = {"give_up": give_up, "elsewhere": elsewhere}
        return self._request("POST", "/v1/cookies/rotate", NODES_SECONDS, body)

    def renew(
        self, names: Sequence[str], *, everything: bool = False, recycle: bool = False
    ) -> dict[str, Any]:
        """Returns when the new certificates are served, or it is known why one is not."""
        body = {"all": True} if everything else {"names": list(names)}
        return self._request("POST", "/v1/certificates/renew", NODES_SECONDS, {**body, "recycle": recycle})

    def ca_rotation(self) -> dict[str, Any]:
        return self._request("GET", "/v1/ca", ANSWER_SECONDS)

    def rotate_ca(self, phase: str, *, elsewhere: bool = False) -> dict[str, Any]:
        """`phase`: prepare, activate, prune or rollback. Returns when it is reached."""
        target = f"/v1/ca/{quote(phase, safe='')}"
        return self._request("POST", target, NODES_SECONDS, {"elsewhere": elsewhere})

    def reload(self) -> dict[str, Any]:
        return self._request("POST", "/v1/reload", POLICY_SECONDS, {})

    def environment(self, node: str) -> dict[str, Any]:
        return self._request("GET", f"/v1/env/{quote(node, safe='')}", ANSWER_SECONDS)

    def shell(self, node: str) -> dict[str, Any]:
        """What this process is to become; it must keep its pid."""
        return self._request("POST", "/v1/shell", SHELL_SECONDS, {"name": node})

    def tool(self, node: str, program: str) -> dict[str, Any]:
        """In which environment this process is to run `program`; it must keep its pid."""
        return self._request("POST", "/v1/exec", SHELL_SECONDS, {"name": node, "program": program})

    def events(self, *, since: float = 0.0, limit: int | None = None) -> dict[str, Any]:
        query = {"since": since} if limit is None else {"since": since, "limit": limit}
        return self._request("GET", f"/v1/events?{urlencode(query)}", ANSWER_SECONDS)

    def follow(self, *, since: float = 0.0, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Each event as it happens, after those since `since`; an object with `dropped` tells of a gap.
        Ends when the orchestrator does."""
        query = (
            {"follow": 1, "since": since} if limit is None else {"follow": 1, "since": since, "limit": limit}
        )
        connection = _UnixConnection(self._path, ANSWER_SECONDS)
        try:
            response = self._send(connection, "GET", f"/v1/events?{urlencode(query)}", None)
            if response.status != 200:
                raise error_from(_parsed(response.read(MAX_ANSWER_BYTES)))
            assert connection.sock is not None
            connection.sock.settimeout(None)  # it may be quiet for days
            while line := response.readline(1024 * 1024):
                if line.strip():
                    yield _object(line)
        except (OSError, http.client.HTTPException):
            raise self._unavailable("the orchestrator went away") from None
        finally:
            connection.close()

    def _request(
        self, method: str, target: str, timeout: float, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        connection = _UnixConnection(self._path, timeout)
        try:
            response = self._send(connection, method, target, body)
            raw = response.read(MAX_ANSWER_BYTES)
            if response.length:  # of a limited read http.client does not say that the rest is missing
                raise http.client.IncompleteRead(raw, response.length)
        except TimeoutError:
            raise self._unavailable(f"no answer within {timeout:g} s") from None
        except (OSError, http.client.HTTPException):
            raise self._unavailable("the orchestrator went away in the middle of its answer") from None
        finally:
            connection.close()
        if response.status != 200:
            raise error_from(_parsed(raw))
        return _object(raw)

    def _send(
        self, connection: _UnixConnection, method: str, target: str, body: Mapping[str, Any] | None
    ) -> http.client.HTTPResponse:
        try:
            connection.connect()
        except PermissionError:
            raise PermissionRefused(
                "this user may not use the control socket",
                where=self._path,
                do="use root or the orchestrator's user",
            ) from None
        except OSError as error:
            reason = "no orchestrator answers" if isinstance(error, _NOBODY) else f"cannot connect: {error}"
            raise self._unavailable(reason) from None
        payload = None if body is None else json.dumps(body)
        connection.request(method, target, payload, {"Content-Type": "application/json"} if payload else {})
        return connection.getresponse()

    def _unavailable(self, what: str) -> Unavailable:
        return Unavailable(what, where=self._path, do=f"start it with `{self._start_command}`")


_NOBODY = (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket; the Host header is a constant."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._unix_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._unix_path)


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _object(raw: bytes) -> dict[str, Any]:
    document = _parsed(raw)
    if not isinstance(document, dict):
        raise CommandFailed("the orchestrator's answer is no JSON object", do="is it of another version?")
    return document
