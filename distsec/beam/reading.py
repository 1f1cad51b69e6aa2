"""Terms of an agent → messages, strictly. The only way from one to the other; no I/O, no state.

Closed sets are closed: an unknown reason, direction, lane or event type is a ProtocolError, as is a wrong
type, a number out of range or a missing field that is not optional. Keys of a map that are not known here are
passed over (the frame's limits bound them), so that a newer agent of the same protocol version is understood.

Texts come from strangers, through a node that may be compromised: they pass `model.text.escape` here, once.
Bad UTF-8 and great length are no errors, or else a stranger's name could cut off an honest agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, NoReturn, TypeVar

from distsec.beam.messages import (
    ERROR_REASONS,
    LANE_OF,
    CheckAction,
    Command,
    EventKind,
    Heartbeat,
    Lane,
    LaneEvent,
    LinkProof,
    LinkUnproven,
    Listener,
    PolicyFault,
    Reply,
    Served,
    Snapshot,
)
from distsec.beam.term import Atom, Term
from distsec.errors import ProtocolError
from distsec.model.cluster import Link
from distsec.model.events import ClockShift
from distsec.model.policy import Direction, Reason, Verdict
from distsec.model.text import escape

TEXT_CHARACTERS: Final = 512  # SPIFFE IDs and DNs fit; node names have at most 255
MAX_NUMBER: Final = 2**63 - 1
MAX_PROOFS: Final = 4096  # links of one node
MAX_TRUSTED: Final = 64

_Member = TypeVar("_Member", bound=StrEnum)
_Value = TypeVar("_Value")


def _members(kind: type[_Member]) -> dict[str, _Member]:
    return {str(member): member for member in kind}


_REASONS = _members(Reason)
_DIRECTIONS = _members(Direction)
_VERDICTS = _members(Verdict)
_LANES = _members(Lane)
_KINDS = _members(EventKind)
_FAULTS = _members(PolicyFault)
_ACTIONS = _members(CheckAction)
_SHIFTS = _members(ClockShift)


def _wrong(what: str) -> NoReturn:
    raise ProtocolError(f"not a message of an agent: {what}")


def _member(table: Mapping[str, _Member], value: Term, what: str) -> _Member:
    found = table.get(value) if type(value) is Atom else None
    if found is None:
        _wrong(what)
    return found


def _number(value: Term, what: str, most: int = MAX_NUMBER) -> int:
    if type(value) is not int or not 0 <= value <= most:
        _wrong(what)
    return value


def _text(value: Term, what: str) -> str:
    if type(value) is not bytes:
        _wrong(what)
    if len(value) <= TEXT_CHARACTERS and value.isascii():
        text = value.decode("ascii")
        if text.isprintable():  # of ASCII: what escape() leaves as it is
            return text
    return escape(value, TEXT_CHARACTERS)


def _bytes(value: Term, what: str) -> bytes:
    if type(value) is not bytes:
        _wrong(what)
    return value


def _digest(value: Term, what: str) -> str:
    if type(value) is not bytes or len(value) != 64 or value.strip(b"0123456789abcdef"):
        _wrong(what)
    return value.decode("ascii")


def _optional(read: Callable[[Term, str], _Value], value: Term, what: str) -> _Value | None:
    return None if value is None else read(value, what)


def _map(value: Term, what: str) -> dict[Any, Term]:
    if type(value) is not dict:
        _wrong(what)
    return value


def _rows(value: Term, width: int, most: int, what: str) -> list[tuple[Any, ...]]:
    """A list of at most `most` tuples of `width`."""
    if type(value) is not list or len(value) > most:
        _wrong(what)
    for row in value:
        if type(row) is not tuple or len(row) != width:
            _wrong(what)
    return value  # type: ignore[return-value]  # just checked


# ---- messages ---------------------------------------------------------------------------------------------


def lane(value: Term) -> Lane:
    """A lane by its atom."""
    return _member(_LANES, value, "lane")


def sequence(value: Term) -> int:
    """A sequence number: they count from 1."""
    return _number(value, "sequence") or _wrong("sequence 0")


def _link(value: Term) -> Link:
    fields = _map(value, "link")
    get = fields.get
    hidden = get("hidden")
    if type(hidden) is not bool:
        _wrong("link: hidden")
    direction, reason, not_after = get("direction"), get("reason"), get("not_after")
    return Link(
        peer=_text(get("peer"), "link: peer"),
        address=_optional(_text, get("address"), "link: address"),
        identity=_optional(_text, get("identity"), "link: identity"),
        issuer=_optional(_text, get("issuer"), "link: issuer"),
        serial=_optional(_text, get("serial"), "link: serial"),
        not_after=_optional(_number, not_after, "link: not_after"),
        direction=None if direction is None else _member(_DIRECTIONS, direction, "link: direction"),
        hidden=hidden,
        tls_version=_optional(_text, get("tls_version"), "link: tls_version"),
        cipher=_optional(_text, get("cipher"), "link: cipher"),
        since=_number(get("since_ms"), "link: since_ms") // 1000,
        verdict=_member(_VERDICTS, get("verdict"), "link: verdict"),
        reason=None if reason is None else _member(_REASONS, reason, "link: reason"),
    )


def snapshot(value: Term) -> Snapshot:
    """The map of `{snapshot, Map}`. Raises ProtocolError."""
    get = _map(value, "snapshot").get
    listeners, links = get("listeners"), get("links")
    if type(listeners) is not list or type(links) is not list:
        _wrong("snapshot: listeners and links")
    return Snapshot(
        node=_text(get("node"), "snapshot: node"),
        os_pid=_number(get("os_pid"), "snapshot: os_pid"),
        otp=_text(get("otp"), "snapshot: otp"),
        launch=_text(get("launch"), "snapshot: launch"),
        started_ms=_number(get("started_ms"), "snapshot: started_ms"),
        carrier=_text(get("carrier"), "snapshot: carrier"),
        listeners=tuple(map(_listener, listeners)),
        optfile_digest=_optional(_digest, get("optfile_digest"), "snapshot: optfile_digest"),
        policy_generation=_optional(_number, get("policy_generation"), "snapshot: policy_generation"),
        policy_digest=_optional(_digest, get("policy_digest"), "snapshot: policy_digest"),
        links=tuple(map(_link, links)),
    )


def _listener(value: Term) -> Listener:
    get = _map(value, "listener").get
    return Listener(
        _text(get("address"), "listener: address"), _number(get("port"), "listener: port", 65_535)
    )


def event(of: Lane, number: int, value: Term, launch: str, missed: int) -> LaneEvent:
    """The map of `{event, Lane, Seq, Map}`. Raises ProtocolError, also for a type of the other lane."""
    fields = _map(value, "event")
    get = fields.get
    kind = _member(_KINDS, get("type"), "event: type")
    if LANE_OF[kind] is not of:
        _wrong(f"{kind} in lane {of}")
    at_ms = _number(get("at_ms"), "event: at_ms")
    if kind is EventKind.REFUSAL:
        address, identity, serial = get("address"), get("identity"), get("serial")
        claimed, rule, detail = get("claimed"), get("rule"), get("detail")
        return LaneEvent(
            of,
            number,
            kind,
            at_ms,
            missed,
            launch,
            None,
            _member(_DIRECTIONS, get("direction"), "refusal: direction"),
            _member(_REASONS, get("reason"), "refusal: reason"),
            None if address is None else _text(address, "refusal: address"),
            None if identity is None else _text(identity, "refusal: identity"),
            None if serial is None else _text(serial, "refusal: serial"),
            None if claimed is None else _text(claimed, "refusal: claimed"),
            None if rule is None else _text(rule, "refusal: rule"),
            None,
            None,
            None if detail is None else _text(detail, "refusal: detail"),
        )
    made: dict[str, Any] = {}
    if kind in (EventKind.LINK_UP, EventKind.LINK_DOWN, EventKind.LINK_RENEWED, EventKind.VIOLATION):
        made["link"] = _link(get("link"))
    elif kind is EventKind.POLICY_APPLIED:
        made["generation"] = _number(get("generation"), "policy_applied: generation")
        made["digest"] = _digest(get("digest"), "policy_applied: digest")
    elif kind is EventKind.POLICY_REJECTED:
        made["reason"] = _member(_FAULTS, get("reason"), "policy_rejected: reason")
    elif kind is EventKind.CLOCK_STEPPED:
        made["reason"] = _member(_SHIFTS, get("reason"), "clock_stepped: reason")
        made["seconds"] = _number(get("seconds"), "clock_stepped: seconds")
    made["detail"] = _optional(_text, get("detail"), f"{kind}: detail")
    return LaneEvent(of, number, kind, at_ms, missed, launch, **made)


def heartbeat(value: Term) -> Heartbeat:
    """The map of `{heartbeat, Map}`. Raises ProtocolError, also for a row that is there twice."""
    get = _map(value, "heartbeat").get
    refusals: dict[tuple[Direction, Reason], int] = {}
    rows = _rows(get("refusals"), 3, len(_DIRECTIONS) * len(_REASONS), "heartbeat: refusals")
    for direction, reason, count in rows:
        row = (
            _member(_DIRECTIONS, direction, "heartbeat: direction"),
            _member(_REASONS, reason, "heartbeat: reason"),
        )
        if row in refusals:
            _wrong("heartbeat: a reason twice")
        refusals[row] = _number(count, "heartbeat: refusals")
    checks: dict[tuple[CheckAction, Verdict], int] = {}
    for action, result, count in _rows(get("checks"), 3, len(_ACTIONS) * len(_VERDICTS), "heartbeat: checks"):
        check = (
            _member(_ACTIONS, action, "heartbeat: action"),
            _member(_VERDICTS, result, "heartbeat: result"),
        )
        if check in checks:
            _wrong("heartbeat: a check twice")
        checks[check] = _number(count, "heartbeat: checks")
    buckets = tuple(
        (
            None if bound == "infinity" else _number(bound, "heartbeat: bound"),
            _number(count, "heartbeat: count"),
        )
        for bound, count in _rows(get("check_seconds"), 2, 64, "heartbeat: check_seconds")
    )
    return Heartbeat(
        policy_generation=_optional(_number, get("policy_generation"), "heartbeat: policy_generation"),
        policy_digest=_optional(_digest, get("policy_digest"), "heartbeat: policy_digest"),
        links=_number(get("links"), "heartbeat: links"),
        sequence=_per_lane(get("sequence"), "heartbeat: sequence"),
        dropped=_per_lane(get("dropped"), "heartbeat: dropped"),
        refusals=refusals,
        checks=checks,
        check_seconds=buckets,
        check_micros_sum=_number(get("check_micros_sum"), "heartbeat: check_micros_sum"),
    )


def _per_lane(value: Term, what: str) -> dict[Lane, int]:
    fields = _map(value, what)
    return {one: _number(fields.get(one), what) for one in Lane}


def reply(number: int, kind: Command, outcome: Term, value: Term) -> Reply:
    """`{reply, Id, Outcome, Map}` to a command of that kind. Raises ProtocolError."""
    get = _map(value, "reply").get
    if outcome == "ok" and type(outcome) is Atom:
        fields: dict[str, Any] = {}
        if kind is Command.POLICY:
            fields["generation"] = _number(get("generation"), "reply: generation")
            fields["digest"] = _digest(get("digest"), "reply: digest")
        elif kind is Command.COOKIES:
            fields["step"] = _number(get("step"), "reply: step")
            fields["either"] = _either(get("either"))
        elif kind is Command.STATUS:
            fields["snapshot"] = snapshot(value)
        elif kind is Command.DOCUMENT:
            fields["document"] = _bytes(get("document"), "reply: document")
        elif kind is Command.RELOAD:
            fields["served"] = _served(get)
        elif kind is Command.RENEW:
            fields["renewed"] = tuple(map(_proof, _list(get("renewed"), "reply: renewed")))
            fields["failed"] = tuple(map(_unproven, _list(get("failed"), "reply: failed")))
        return Reply(number, True, fields)
    if outcome != "error" or type(outcome) is not Atom:
        _wrong("reply: ok or error")
    reason = get("reason")
    if type(reason) is not Atom:
        _wrong("reply: reason")
    known = str(reason) if reason in ERROR_REASONS else "other"
    return Reply(number, False, {"reason": known, "detail": _optional(_text, get("detail"), "reply: detail")})


def _either(value: Term) -> bool:
    """Whether a node takes two cookies of each peer now."""
    if type(value) is not bool:
        _wrong("reply: either")
    return value


def _served(get: Callable[[str], Term]) -> Served:
    trusted = get("trusted")
    if type(trusted) is not list or len(trusted) > MAX_TRUSTED:
        _wrong("reply: trusted")
    return Served(
        _text(get("serial"), "reply: serial"),
        _number(get("not_after"), "reply: not_after"),
        tuple(_digest(each, "reply: trusted") for each in trusted),
    )


def _list(value: Term, what: str) -> list[Term]:
    if type(value) is not list or len(value) > MAX_PROOFS:
        _wrong(what)
    return value


def _proof(value: Term) -> LinkProof:
    get = _map(value, "proof").get
    cookie = get("cookie")
    if cookie not in ("current", "other") or type(cookie) is not Atom:
        _wrong("proof: cookie")
    return LinkProof(
        peer=_text(get("peer"), "proof: peer"),
        serial=_text(get("serial"), "proof: serial"),
        not_after=_number(get("not_after"), "proof: not_after"),
        cookie_current=cookie == "current",
    )


def _unproven(value: Term) -> LinkUnproven:
    get = _map(value, "proof").get
    reason = get("reason")
    if type(reason) is not Atom:
        _wrong("proof: reason")
    return LinkUnproven(_text(get("peer"), "proof: peer"), escape(reason, 40))
