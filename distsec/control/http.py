"""JSON over HTTP on the control socket. A thin adapter: it knows who calls and turns bytes into values and
back.

Only root and the orchestrator's own user get an answer, and no process below a managed node does, even
where nodes share the user: a compromised node must not allow its friends. Who calls is told by the kernel
(SO_PEERCRED).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import pwd
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from distsec import __version__
from distsec.beam.shortage import shortage
from distsec.beam.unix_socket import Listening, ProcessHandle, listen, peer_credentials
from distsec.control.accepting import Acceptor
from distsec.control.service import Service, event_document
from distsec.control.wire import JSON_LINES, MAX_REQUEST_BYTES, SCHEMA, error_document
from distsec.errors import (
    CommandFailed,
    ConfigError,
    DistsecError,
    NameInvalid,
    NotAcknowledged,
    NotFound,
    PermissionRefused,
    Unavailable,
    UsageError,
)
from distsec.model.shells import Operator
from distsec.model.text import escape
from distsec.observe.bus import Follower

MAX_FOLLOWERS = 32

MAX_CONNECTIONS = 128
"""At a time: followers, and commands, of which one may take minutes."""

REQUEST_SECONDS = 10.0
"""From accept(2) to the head of the first request; and as long again for its body, of 64 KiB at the most."""

KEEP_ALIVE_SECONDS = 5.0
QUIET_SECONDS = 15.0
"""After so long without an event a follower is sent an empty line."""

IsManaged = Callable[[int], bool]
OnFailure = Callable[[str, BaseException], object]
Begun = Callable[[], Awaitable[object]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HTTP_STATUS: tuple[tuple[type[DistsecError], int], ...] = (
    (UsageError, 400),
    (NameInvalid, 400),
    (PermissionRefused, 403),
    (NotFound, 404),
    (NotAcknowledged, 409),
    (ConfigError, 422),
    (Unavailable, 503),
)


class ControlServer:
    """Serves `service` at `path`. `is_managed(pid)` says whether a process descends from a managed node;
    `on_failure(what, error)` hears of bugs, of which the caller is told no more than that there was one.
    Commands wait until `begun()` has returned: it is not known before who lives."""

    def __init__(
        self, service: Service, path: Path, *, is_managed: IsManaged, on_failure: OnFailure, begun: Begun
    ) -> None:
        self._service = service
        self._path = path
        self._is_managed = is_managed
        self._on_failure = on_failure
        self._begun = begun
        self._followers: set[Follower] = set()
        self._runner: web.AppRunner | None = None
        self._accepting: Acceptor | None = None
        self._listening: Listening | None = None

    async def start(self) -> None:
        """Listens. Raises StoreError where the socket cannot be made, PortInUse where another one answers."""
        app = web.Application(middlewares=[self._answer], client_max_size=MAX_REQUEST_BYTES)
        app.add_routes(
            [
                web.get("/v1/health", self._health),
                web.get("/v1/status", self._status),
                web.post("/v1/nodes/{action}", self._nodes),
                web.post("/v1/adopt", self._adopt),
                web.post("/v1/policy/allow", self._allow),
                web.post("/v1/policy/deny", self._deny),
                web.get("/v1/certificates", self._certificates),
                web.post("/v1/certificates/revoke", self._revoke),
                web.post("/v1/certificates/renew", self._renew),
                web.post("/v1/certificates/serve", self._serve),
                web.post("/v1/certificates/issued", self._issued),
                web.get("/v1/cookies", self._cookies),
                web.post("/v1/cookies/rotate", self._rotate_cookies),
                web.get("/v1/ca", self._ca_rotation),
                web.post("/v1/ca/{phase}", self._rotate_ca),
                web.post("/v1/reload", self._reload),
                web.post("/v1/shell", self._shell),
                web.post("/v1/exec", self._tool),
                web.get("/v1/events", self._events),
                web.get("/v1/env/{node}", self._environment),
            ]
        )
        self._listening = listen(self._path)
        # handler_cancellation stays off: a command that was taken is carried out though its caller goes away.
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS, shutdown_timeout=1.0
        )
        await self._runner.setup()
        self._accepting = self._accept(self._runner, self._listening)

    async def mend(self) -> bool:
        """Listens anew where the socket's file is gone. Whether it did. Raises like `start`."""
        if self._runner is None or self._listening is None or self._listening.is_there():
            return False
        old = self._accepting
        self._listening = listen(self._path)
        self._accepting = self._accept(self._runner, self._listening)
        if old is not None:
            await old.close()
        return True

    def _accept(self, runner: web.AppRunner, listening: Listening) -> Acceptor:
        assert runner.server is not None
        return Acceptor(
            listening.socket,
            runner.server,
            most=MAX_CONNECTIONS,
            seconds=REQUEST_SECONDS,
            welcome=self._is_welcome,
        )

    def _is_welcome(self, connection: socket.socket) -> bool:
        """While many are connected: a node of our own user can connect, and is not to keep operators out."""
        try:
            pid, _ = peer_credentials(connection)
            return not self._is_managed(pid)
        except OSError:  # it has gone already
            return False

    async def close(self) -> None:
        """Ends what is open within about a second, and removes the socket. May be called twice."""
        for follower in tuple(self._followers):
            follower.close()
        if self._accepting is not None:
            await self._accepting.close()
            self._accepting = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    # ---- around every request ----------

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if self._accepting is not None:
                self._accepting.spare(request.transport)
            self._admit(request)
            if request.method == "POST":
                await self._begun()
                self._admit(request)  # whose process that is may be known only now
            return await handler(request)
        except DistsecError as error:
            status = next((status for kind, status in _HTTP_STATUS if isinstance(error, kind)), 500)
            return web.json_response(error_document(error), status=status)
        except web.HTTPException as error:
            refusal = UsageError(
                f"the control socket does not know this request: {error.reason}",
                do="is the client of another version?",
            )
            return web.json_response(error_document(refusal), status=error.status)
        except Exception as error:
            self._on_failure(f"{request.method} {request.path}", error)
            failure = CommandFailed("the orchestrator failed at this command", do="look into its log")
            return web.json_response(error_document(failure), status=500)

    def _admit(self, request: web.Request) -> None:
        """Raises PermissionRefused unless the kernel says that an operator is at the other end."""
        pid, uid = _caller(request)
        if uid not in {0, os.geteuid()}:
            raise PermissionRefused(
                f"uid {uid} may not control this orchestrator", do="use root or its own user"
            )
        if pid <= 0:  # of another pid namespace: it cannot be told from a managed node
            raise PermissionRefused(
                "the calling process is not visible here", do="call from the same namespace"
            )
        if self._is_managed(pid) or not _lives(pid):
            # One that has ended may have left its connection to a managed node that was its parent.
            raise PermissionRefused("a process of a managed node may not control the orchestrator")

    # ---- requests ----------

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"schema": SCHEMA, "version": __version__, "pid": os.getpid()})

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._service.status())

    async def _nodes(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "names", "all")
        action = request.match_info["action"]
        return web.json_response(await self._service.nodes(action, body.get("names"), body.get("all")))

    async def _adopt(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "name", "pid", "seconds")
        answer = await self._service.adopt(body.get("name"), body.get("pid"), body.get("seconds"))
        return web.json_response(answer)

    async def _allow(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "name", "identity")
        return web.json_response(await self._service.allow(body.get("name"), body.get("identity")))

    async def _deny(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "name", "compromised", "since")
        compromised, since = body.get("compromised", False), body.get("since", 0.0)
        return web.json_response(await self._service.deny(body.get("name"), compromised, since))

    async def _certificates(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self._service.certificates())

    async def _revoke(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "what", "reason")
        return web.json_response(await self._service.revoke(body.get("what"), body.get("reason")))

    async def _cookies(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self._service.cookies())

    async def _rotate_cookies(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "give_up", "elsewhere")
        give_up, elsewhere = body.get("give_up", False), body.get("elsewhere", False)
        return web.json_response(await self._service.rotate_cookies(give_up, elsewhere))

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "names")
        return web.json_response(await self._service.serve(body.get("names")))

    async def _issued(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "serial")
        return web.json_response(await self._service.told_of_issue(body.get("serial")))

    async def _renew(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "names", "all", "recycle")
        names, everything = body.get("names"), body.get("all", False)
        return web.json_response(await self._service.renew(names, everything, body.get("recycle", False)))

    async def _ca_rotation(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self._service.ca_rotation())

    async def _rotate_ca(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "elsewhere")
        phase, elsewhere = request.match_info["phase"], body.get("elsewhere", False)
        return web.json_response(await self._service.rotate_ca(phase, elsewhere))

    async def _reload(self, request: web.Request) -> web.StreamResponse:
        await _body(request)
        return web.json_response(await self._service.reload())

    async def _shell(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "name")
        pid, uid = _caller(request)
        return web.json_response(
            await self._service.shell(body.get("name"), Operator(pid, uid, _user_name(uid)))
        )

    async def _tool(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, "name", "program")
        pid, uid = _caller(request)
        who = Operator(pid, uid, _user_name(uid))
        return web.json_response(await self._service.tool(body.get("name"), who, body.get("program")))

    async def _environment(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._service.environment(request.match_info["node"]))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        since = _number(request, "since", 0.0)
        after = int(_number(request, "after", 0))
        limit = int(_number(request, "limit", -1))
        wanted = None if limit < 0 else limit
        if request.query.get("follow") != "1":
            events = self._service.events(since=since, after=after, limit=wanted)
            return web.json_response({"schema": SCHEMA, "events": events})
        if len(self._followers) >= MAX_FOLLOWERS:
            raise Unavailable(f"{MAX_FOLLOWERS} others follow the events already", do="end one of them")
        async with self._service.follow() as follower:
            self._followers.add(follower)
            try:
                # No await between the two: nothing is published in between, so nothing is lost or told twice.
                begin = self._service.events(since=since, after=after, limit=wanted)
                return await _stream(request, begin, follower)
            finally:
                self._followers.discard(follower)


async def _stream(
    request: web.Request, begin: list[dict[str, Any]], follower: Follower
) -> web.StreamResponse:
    """JSON lines: `begin`, then what happens, until the caller goes away or the orchestrator ends."""
    response = web.StreamResponse(headers={"Content-Type": JSON_LINES})
    await response.prepare(request)
    try:
        await response.write(b"".join(map(_line, begin)) or b"\n")
        while True:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    first = await anext(follower)
            except TimeoutError:
                await response.write(b"\n")  # finds out whether somebody still reads
                continue
            lines = [_line(event_document(published)) for published in (first, *follower.waiting())]
            if dropped := follower.take_dropped():
                lines.insert(0, _line({"schema": SCHEMA, "dropped": dropped}))
            await response.write(b"".join(lines))
    except StopAsyncIteration:
        await response.write_eof()
    except ConnectionError:
        pass  # the caller has seen enough
    return response


def _caller(request: web.Request) -> tuple[int, int]:
    """The pid and uid of who has connected, as the kernel says. Raises PermissionRefused."""
    connected = request.transport.get_extra_info("socket") if request.transport else None
    if connected is None:
        raise PermissionRefused("who calls is not known")
    return peer_credentials(connected)


def _user_name(uid: int) -> str:
    try:
        return escape(pwd.getpwuid(uid).pw_name, 64)
    except KeyError:
        return "?"


def _lives(pid: int) -> bool:
    try:
        handle = ProcessHandle(pid)
    except OSError as error:
        if (short := shortage(error)) is not None:
            raise Unavailable(f"who calls cannot be looked at: {short}", do="try again") from error
        return False
    try:
        return not handle.ended()
    finally:
        handle.close()


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


async def _body(request: web.Request, *known: str) -> dict[str, Any]:
    """The JSON object of the request, {} if there is none. Raises UsageError for anything else, or unknown
    keys."""
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            raw = await request.read()
    except TimeoutError:
        raise UsageError("the rest of the request does not come") from None
    try:
        body = json.loads(raw) if raw else {}
    except (ValueError, RecursionError):
        raise UsageError("the request is no JSON") from None
    if not isinstance(body, dict):
        raise UsageError("the request is no JSON object")
    unknown = sorted(set(body) - {*known, "schema"})
    if unknown:
        raise UsageError(f"unknown key {unknown[0][:40]!a}", do="is the client of another version?")
    return body


def _number(request: web.Request, key: str, default: float) -> float:
    try:
        value = float(request.query.get(key, default))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 2**53:
        raise UsageError(f"{key} is no number")
    return value
