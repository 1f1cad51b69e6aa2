"""The port protocol without I/O: opening, table of states, strict messages, lanes, split reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsec.beam import protocol
from distsec.beam.frames import Frames, frame
from distsec.beam.messages import (
    AgentRefusal,
    Command,
    EventKind,
    Heartbeat,
    Lane,
    LaneEvent,
    LinkProof,
    LinkUnproven,
    Listener,
    Message,
    Opened,
    PolicyFault,
    Reply,
    Served,
    Snapshot,
)
from distsec.beam.protocol import (
    MAX_OPENING_FRAME_BYTES,
    TRANSITIONS,
    AgentConnection,
    State,
    agent_mac,
    orchestrator_mac,
)
from distsec.beam.security_events import (
    REFUSAL_EVENTS,
    agent_connected,
    agent_lost,
    agent_refused,
    to_security_event,
)
from distsec.beam.term import MAX_FRAME_BYTES, Atom, Term, decode, encode
from distsec.errors import ProtocolError
from distsec.model.events import ClockShift, EventType, Severity
from distsec.model.policy import Direction, Reason
from distsec.model.secret import Secret
from tests.unit.fake_agent import (
    DIGEST,
    KEY,
    NODE,
    atoms,
    critical,
    heartbeat_fields,
    link_fields,
    packet,
    refusal,
    refusal_fields,
    snapshot_fields,
)

NONCE = b"O" * 32
AGENT_NONCE = b"A" * 32
LAUNCH = "0123456789abcdef" * 2
HELLO: Term = (Atom("hello"), 1, NODE.encode(), AGENT_NONCE)
PROOF: Term = (Atom("proof"), agent_mac(KEY, NODE, AGENT_NONCE, NONCE, LAUNCH.encode()), LAUNCH.encode())
SNAPSHOT: Term = (Atom("snapshot"), snapshot_fields(NODE, LAUNCH))


def connection(acked: Mapping[Lane, int] | None = None) -> AgentConnection:
    return AgentConnection(NODE, KEY, NONCE, lambda launch: acked or {})


def receive(to: AgentConnection, *terms: Term) -> list[Message]:
    return to.receive_data(b"".join(map(packet, terms)))


def said(by: AgentConnection) -> list[Any]:
    frames, terms = Frames(MAX_FRAME_BYTES), []
    frames.feed(by.data_to_send())
    while (payload := frames.peek()) is not None:
        terms.append(decode(payload))
        frames.take()
    return terms


def at(state: State, acked: Mapping[Lane, int] | None = None) -> AgentConnection:
    """A connection that came to `state` the honest way; what it said is taken."""
    made = connection(acked)
    if state is not State.HELLO:
        receive(made, HELLO)
    if state not in (State.HELLO, State.PROOF):
        receive(made, PROOF)
    if state in (State.SNAPSHOT, State.OPEN):
        made.admit()
    if state is State.OPEN:
        receive(made, SNAPSHOT)
    if state is State.CLOSED:
        made.refuse(AgentRefusal.BUSY)
    said(made)
    assert made.state is state
    return made


def refused(by: AgentConnection, *terms: Term, reason: str = "protocol") -> ProtocolError:
    """The bytes are refused, nothing changes, and they are refused again."""
    before = by.state
    with pytest.raises(ProtocolError) as caught:
        receive(by, *terms)
    assert caught.value.reason == reason
    assert (by.state, said(by)) == (before, [])
    with pytest.raises(ProtocolError):
        by.receive_data(b"")
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()
    return caught.value


# ---- opening ----------------------------------------------------------------------------------------


def test_an_opening_reads_like_this() -> None:
    ours = connection({Lane.CRITICAL: 3, Lane.REFUSALS: 40})

    assert receive(ours, HELLO) == []
    mac = orchestrator_mac(KEY, NODE, AGENT_NONCE, NONCE)
    assert said(ours) == [("challenge", 1, NONCE, mac)]

    assert receive(ours, PROOF) == [Opened(LAUNCH)]
    assert said(ours) == []
    ours.admit()
    assert said(ours) == [("welcome", {"critical": 3, "refusals": 40})]

    (snapshot,) = receive(ours, SNAPSHOT)
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.node, snapshot.launch, snapshot.otp) == (NODE, LAUNCH, "25")
    assert snapshot.listeners == (Listener("127.0.0.1", 9100),)
    assert snapshot.policy_digest == DIGEST.decode()
    (link,) = snapshot.links
    assert (link.peer, link.direction, link.hidden, link.verdict) == ("agent@127.0.0.1", "in", False, "allow")
    assert (link.since, link.not_after, link.reason) == (1_763_764_000, 1_800_000_000, None)
    assert ours.state is State.OPEN


def test_macs_are_those_of_the_specification() -> None:
    """Made from the specification with `openssl dgst -sha256 -mac HMAC -macopt hexkey:0001…1f`."""
    assert orchestrator_mac(KEY, NODE, AGENT_NONCE, NONCE).hex() == (
        "f9c2d4a5443e370112da2df45c37a8ea7b4ab542ba69139670f0189a9f45fd60"
    )
    assert agent_mac(KEY, NODE, AGENT_NONCE, NONCE, LAUNCH.encode()).hex() == (
        "d92a138e6513956bd85769394d606f58c23e69cb30d79e8c3b78dc9d355638e8"
    )


@pytest.mark.parametrize(
    "mac",
    [
        bytes(32),
        b"",
        orchestrator_mac(KEY, NODE, AGENT_NONCE, NONCE),  # reflected
        agent_mac(Secret(bytes(32)), NODE, AGENT_NONCE, NONCE, LAUNCH.encode()),
        agent_mac(KEY, "agent@127.0.0.1", AGENT_NONCE, NONCE, LAUNCH.encode()),
        agent_mac(KEY, NODE, AGENT_NONCE, b"P" * 32, LAUNCH.encode()),  # of another connection
        agent_mac(KEY, NODE, AGENT_NONCE, NONCE, b"f" * 32),  # of another launch
    ],
)
def test_refuses_a_proof_that_does_not_verify(mac: bytes) -> None:
    refused(at(State.PROOF), (Atom("proof"), mac, LAUNCH.encode()), reason="proof")


@pytest.mark.parametrize(("version", "older"), [(0, "agent"), (2, "orchestrator"), (2**400, "orchestrator")])
def test_another_version_says_which_side_to_upgrade(version: int, older: str) -> None:
    error = refused(connection(), (Atom("hello"), version, b"whatever", 17), reason="version")
    assert error.do == f"upgrade the {older}"


def test_an_older_version_that_is_spoken_is_answered_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "VERSION", 2)
    monkeypatch.setattr(protocol, "SPOKEN", frozenset({1, 2}))
    for version in (1, 2):
        made = connection()
        receive(made, (Atom("hello"), version, NODE.encode(), AGENT_NONCE))
        [challenge] = said(made)
        assert challenge[:2] == (Atom("challenge"), version)
    refused(connection(), (Atom("hello"), 3, NODE.encode(), AGENT_NONCE), reason="version")


@pytest.mark.parametrize(
    "hello",
    [
        (Atom("hello"), 1, b"agent@127.0.0.1", AGENT_NONCE),
        (Atom("hello"), 1, b"\x1b[2J" + b"x" * 3000, AGENT_NONCE),
        (Atom("hello"), 1, Atom(NODE), AGENT_NONCE),
        (Atom("hello"), 1, NODE.encode(), AGENT_NONCE[1:]),
        (Atom("hello"), 1, NODE.encode()),
        (Atom("hello"), True, NODE.encode(), AGENT_NONCE),
        (Atom("hello"),),
        (b"hello", 1, NODE.encode(), AGENT_NONCE),
        Atom("hello"),
        [],
        (),
    ],
)
def test_refuses_a_hello_that_is_not_of_this_node_or_no_hello(hello: Term) -> None:
    refused(connection(), hello)


@pytest.mark.parametrize("launch", [b"", b"0" * 31, b"0" * 33, b"G" * 32, b"0" * 32 + b"\n", Atom("0" * 32)])
def test_refuses_a_launch_that_is_not_32_hex_digits(launch: Any) -> None:
    mac = agent_mac(
        KEY, NODE, AGENT_NONCE, NONCE, bytes(launch, "ascii") if isinstance(launch, str) else launch
    )
    refused(at(State.PROOF), (Atom("proof"), mac, launch))


def test_a_stranger_cannot_make_us_hold_a_megabyte() -> None:
    stranger = connection()
    with pytest.raises(ProtocolError) as caught:
        stranger.receive_data((MAX_OPENING_FRAME_BYTES + 1).to_bytes(4, "big"))
    assert caught.value.reason == "frame_too_large"


@pytest.mark.parametrize(
    "reason",
    [AgentRefusal.VERSION, AgentRefusal.PROOF, AgentRefusal.PROCESS, AgentRefusal.BUSY],
)
def test_says_goodbye_where_the_agent_should_know_why(reason: AgentRefusal) -> None:
    ours = connection()
    ours.refuse(reason)
    assert said(ours) == [("goodbye", str(reason))]
    assert ours.state is State.CLOSED
    ours.refuse(reason)
    assert said(ours) == []


def test_says_nothing_to_whoever_sends_garbage() -> None:
    ours = at(State.OPEN)
    ours.refuse(AgentRefusal.TERM)
    assert said(ours) == []


# ---- the table --------------------------------------------------------------------------------------

LEGAL: Mapping[str, Term] = {
    "hello": HELLO,
    "proof": PROOF,
    "snapshot": SNAPSHOT,
    "event": refusal(1),
    "heartbeat": (Atom("heartbeat"), heartbeat_fields()),
    "reply": (Atom("reply"), 1, Atom("ok"), {}),
    "welcome": (Atom("welcome"), {}),
    "command": (Atom("command"), 1, Atom("stop"), {}),
    "no_such": (Atom("no_such"),),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("tag", LEGAL)
def test_whatever_is_not_in_the_table_changes_nothing(state: State, tag: str) -> None:
    ours = at(state)
    if state is State.OPEN:
        ours.send_command(1, Command.STOP, {})
        said(ours)
    if tag in TRANSITIONS[state]:
        receive(ours, LEGAL[tag])
        assert ours.state is TRANSITIONS[state][tag]
    else:
        refused(ours, LEGAL[tag])


def test_admit_and_commands_are_for_their_states_only() -> None:
    for state in State:
        ours = at(state)
        if state is not State.ADMISSION:
            with pytest.raises(RuntimeError):
                ours.admit()
        if state is not State.OPEN:
            with pytest.raises(RuntimeError):
                ours.send_command(1, Command.STOP, {})


def test_messages_before_a_bad_frame_are_handed_on_first() -> None:
    ours = at(State.OPEN)
    assert len(receive(ours, refusal(1), refusal(2), (Atom("rubbish"),), refusal(3))) == 2
    with pytest.raises(ProtocolError):
        ours.receive_data(b"")
    with pytest.raises(ProtocolError):
        ours.receive_data(packet(refusal(4)))


def test_stops_after_opened_so_that_the_link_can_decide() -> None:
    ours = at(State.PROOF)
    assert receive(ours, PROOF, SNAPSHOT, refusal(1)) == [Opened(LAUNCH)]
    ours.admit()
    assert [type(message) for message in ours.receive_data(b"")] == [Snapshot, LaneEvent]


# ---- split reads ------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(1, 400))
def test_reads_of_any_size_say_the_same(size: int) -> None:
    ours = at(State.OPEN)
    terms = [refusal(1), critical(1, type=Atom("guard"), detail=b"x"), refusal(2)]
    stream = b"".join(map(packet, terms))
    messages = [
        message
        for begin in range(0, len(stream), size)
        for message in ours.receive_data(stream[begin : begin + size])
    ]
    assert messages == receive(at(State.OPEN), *terms)
    assert (ours.held, ours.pending) == (0, False)


def test_an_opening_byte_by_byte() -> None:
    ours = connection()
    messages: list[Message] = []
    for term in (HELLO, PROOF, SNAPSHOT):
        for byte in packet(term):
            messages += ours.receive_data(bytes([byte]))
        if ours.state is State.ADMISSION:
            ours.admit()
    assert [type(message) for message in messages] == [Opened, Snapshot]


@given(st.lists(st.binary(max_size=40), max_size=12), st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    payloads: list[bytes], data: st.DataObject
) -> None:
    stream, frames, out = b"".join(map(frame, payloads)), Frames(40), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        frames.feed(stream[:size])
        stream = stream[size:]
        takes = data.draw(st.integers(0, 12))
        while takes and (payload := frames.peek()) is not None:
            assert frames.pending
            frames.take()
            out.append(payload)
            takes -= 1
    while (payload := frames.peek()) is not None:
        out.append(payload)
        frames.take()
    assert out == payloads
    assert (frames.pending, frames.held) == (False, 0)


def test_a_long_frame_byte_by_byte_costs_what_its_bytes_cost() -> None:
    """A copy of what is there for each byte would take minutes."""
    frames = Frames(MAX_FRAME_BYTES)
    stream = frame(bytes(300_000))
    for at_byte in range(len(stream)):
        assert frames.peek() is None
        frames.feed(stream[at_byte : at_byte + 1])
    assert frames.peek() == bytes(300_000)


def test_works_on_about_as_many_bytes_as_it_is_told_to() -> None:
    ours = at(State.OPEN)
    stream = b"".join(packet(refusal(number)) for number in range(1, 11))
    assert len(ours.receive_data(stream, max_bytes=1)) == 1
    assert ours.pending
    assert len(ours.receive_data(b"", max_bytes=len(stream) // 10 + 1)) == 2
    assert len(ours.receive_data(b"")) == 7
    assert not ours.pending


# ---- lanes ------------------------------------------------------------------------------------------


def test_drops_events_that_came_before_and_counts_gaps() -> None:
    ours = at(State.OPEN, {Lane.REFUSALS: 5})
    events = receive(ours, *(refusal(number) for number in (4, 5, 6, 6, 9, 7, 10)))
    assert [(event.sequence, event.missed) for event in events if isinstance(event, LaneEvent)] == [
        (6, 0),
        (9, 2),
        (10, 0),
    ]
    assert (ours.duplicates, ours.missed) == (4, 2)


def test_each_lane_counts_for_itself() -> None:
    ours = at(State.OPEN)
    assert len(receive(ours, refusal(7), critical(7, type=Atom("guard"), detail=b""), refusal(8))) == 3


def test_an_orchestrator_that_knows_nothing_of_a_launch_calls_nothing_missed() -> None:
    (event,) = receive(at(State.OPEN), refusal(5000))
    assert isinstance(event, LaneEvent)
    assert event.missed == 0


@pytest.mark.parametrize("number", [0, -1, 2**63, True, b"1", None, 1.0])
def test_refuses_a_sequence_that_is_no_number_from_1(number: Any) -> None:
    refused(at(State.OPEN), refusal(number))


def test_refuses_an_event_of_the_other_lane() -> None:
    refused(at(State.OPEN), (Atom("event"), Atom("critical"), 1, refusal_fields()))
    violation = atoms(type="violation", at_ms=1, link=link_fields())
    refused(at(State.OPEN), (Atom("event"), Atom("refusals"), 1, violation))
    refused(at(State.OPEN), (Atom("event"), Atom("third"), 1, refusal_fields()))


# ---- messages ---------------------------------------------------------------------------------------


def test_reads_a_refusal() -> None:
    (event,) = receive(at(State.OPEN), refusal(1))
    assert event == LaneEvent(
        lane=Lane.REFUSALS,
        sequence=1,
        kind=EventKind.REFUSAL,
        at_ms=1_763_764_000_123,
        launch=LAUNCH,
        direction=Direction.IN,
        reason=Reason.NOT_ALLOWED,
        address="127.0.0.1:40112",
        identity="spiffe://demo/node/127.0.0.1/evil",
        serial="0a1b2c3d4e5f60718293a4b5c6d7e8f901020304",
        claimed="evil@127.0.0.1",
        detail="on no list",
    )


def test_a_strangers_name_is_escaped_and_bounded_and_cuts_off_nobody() -> None:
    ours = at(State.OPEN)
    (event,) = receive(
        ours, refusal(1, claimed=b"\xff\x1b]0;x\x07" + b"A" * 100_000, identity="é\u202e".encode())
    )
    assert isinstance(event, LaneEvent)
    assert event.claimed is not None
    assert event.claimed.startswith(r"\xff\x1b]0;x\x07AAA")
    assert len(event.claimed) < 1000
    assert event.identity == r"é\u202e"


def test_a_newer_agents_keys_are_passed_over() -> None:
    ours = at(State.OPEN)
    assert len(receive(ours, refusal(1, invented=[(b"x", 1)], later=Atom("later")))) == 1


def test_reads_every_event_of_the_critical_lane() -> None:
    ours = at(State.OPEN)
    events = receive(
        ours,
        critical(1, type=Atom("link_up"), link=link_fields()),
        critical(2, type=Atom("link_down"), link=link_fields(), detail=b"connection_closed"),
        critical(3, type=Atom("link_renewed"), link=link_fields()),
        critical(4, type=Atom("violation"), link=link_fields(verdict="deny", reason="not_allowed")),
        critical(5, type=Atom("policy_applied"), generation=8, digest=DIGEST),
        critical(6, type=Atom("policy_rejected"), reason=Atom("signature")),
        critical(7, type=Atom("guard"), detail=b"proto_dist changed"),
        critical(8, type=Atom("clock_stepped"), reason=Atom("back"), seconds=86400),
    )
    assert [event.kind for event in events if isinstance(event, LaneEvent)] == [
        kind for kind in EventKind if kind is not EventKind.REFUSAL
    ]
    applied, rejected = events[4], events[5]
    assert isinstance(applied, LaneEvent)
    assert isinstance(rejected, LaneEvent)
    assert (applied.generation, applied.digest) == (8, DIGEST.decode())
    assert rejected.reason is PolicyFault.SIGNATURE
    stepped = next(event for event in events if isinstance(event, LaneEvent) and event.seconds)
    assert (stepped.reason, stepped.seconds) == (ClockShift.BACK, 86400)


def test_reads_a_heartbeat() -> None:
    (beat,) = receive(at(State.OPEN), (Atom("heartbeat"), heartbeat_fields()))
    assert isinstance(beat, Heartbeat)
    assert beat.sequence == {Lane.CRITICAL: 3, Lane.REFUSALS: 2}
    assert beat.refusals == {(Direction.IN, Reason.NOT_ALLOWED): 2}
    assert beat.checks == {("handshake_in", "deny"): 2}
    assert beat.check_seconds == ((100, 1), (None, 1))
    assert (beat.policy_generation, beat.policy_digest, beat.links, beat.check_micros_sum) == (
        7,
        DIGEST.decode(),
        1,
        1234,
    )


IN, DENY = Atom("in"), Atom("deny")
BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    *(("refusal", {"reason": bad}) for bad in (Atom("made_up"), b"denied", None, 1, [], {})),
    *(("refusal", {"direction": bad}) for bad in (Atom("sideways"), b"in", None, (IN,))),
    *(("refusal", {"type": bad}) for bad in (Atom("made_up"), b"refusal", None)),
    *(("refusal", {"at_ms": bad}) for bad in (-1, 2**63, 1.5, True, None)),
    *(("refusal", {"claimed": bad}) for bad in (Atom("x@y"), 1, [1, 2], False, {})),
    *(("clock_stepped", {"reason": bad}) for bad in (Atom("sideways"), b"back", None)),
    *(("clock_stepped", {"seconds": bad}) for bad in (-1, 2**63, None, 1.0)),
    *(
        ("snapshot", {"policy_digest": bad})
        for bad in (DIGEST.upper(), DIGEST[1:], b"", Atom("x"), b"g" * 64)
    ),
    *(("snapshot", {"os_pid": bad}) for bad in (-1, None, b"1")),
    *(("snapshot", {"node": bad}) for bad in (b"agent@127.0.0.1", None)),
    ("snapshot", {"launch": b"0" * 32}),
    *(("snapshot", {"listeners": bad}) for bad in (None, {}, [1], [atoms(address=b"x", port=65_536)])),
    *(("snapshot", {"links": bad}) for bad in (None, {}, [1], [{}])),
    *(
        ("snapshot", {"links": [link_fields(**bad)]})
        for bad in ({"hidden": None}, {"hidden": 1}, {"peer": None})
    ),
    ("snapshot", {"links": [link_fields(verdict="perhaps")]}),
    ("snapshot", {"links": [link_fields(verdict=None)]}),
    ("snapshot", {"links": [link_fields(reason="made_up")]}),
    ("snapshot", {"links": [link_fields(direction="up")]}),
    ("snapshot", {"links": [link_fields(not_after=-1)]}),
    ("heartbeat", {"refusals": [(IN, Atom("denied"), 1), (IN, Atom("denied"), 2)]}),
    ("heartbeat", {"refusals": [(IN, Atom("made_up"), 1)]}),
    ("heartbeat", {"refusals": [(IN, Atom("denied"))]}),
    ("heartbeat", {"refusals": [(IN, Atom("denied"), -1)]}),
    ("heartbeat", {"refusals": (1, 2)}),
    ("heartbeat", {"checks": [(Atom("guess"), DENY, 1)]}),
    ("heartbeat", {"checks": [(Atom("link_in"), DENY, 1)] * 2}),
    ("heartbeat", {"check_seconds": [(1, 1)] * 65}),
    ("heartbeat", {"check_seconds": [(b"infinity", 1)]}),
    ("heartbeat", {"check_micros_sum": None}),
    ("heartbeat", {"sequence": atoms(critical=1)}),
    ("heartbeat", {"dropped": atoms(critical=1, refusals=-1)}),
    ("heartbeat", {"links": [link_fields()]}),
]


@pytest.mark.parametrize(("kind", "changes"), BAD_FIELDS)
def test_refuses_a_field_that_is_not_as_specified(kind: str, changes: dict[str, Any]) -> None:
    match kind:
        case "refusal":
            refused(at(State.OPEN), refusal(1, **changes))
        case "clock_stepped":
            fields = {"reason": Atom("back"), "seconds": 1} | changes
            refused(at(State.OPEN), critical(1, type=Atom("clock_stepped"), **fields))
        case "snapshot":
            fields = snapshot_fields(**({"node": NODE, "launch": LAUNCH} | {})) | atoms(**changes)
            refused(at(State.SNAPSHOT), (Atom("snapshot"), fields))
        case _:
            refused(at(State.OPEN), (Atom("heartbeat"), heartbeat_fields(**changes)))


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**64), 2**64), st.binary(max_size=80))
    | st.sampled_from(["in", "deny", "critical", "refusal", "link_up", "ok", "x"]).map(Atom),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["link", "type", "reason", "peer"]).map(Atom), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.sampled_from(sorted(refusal_fields() | snapshot_fields() | heartbeat_fields())),
    anything,
    st.integers(0, 2),
)
def test_any_value_in_any_field_is_a_message_or_a_protocol_error(key: Atom, value: Any, kind: int) -> None:
    ours = at(State.SNAPSHOT if kind == 1 else State.OPEN)
    tag, fields = [
        ((Atom("event"), Atom("refusals"), 1), refusal_fields()),
        ((Atom("snapshot"),), snapshot_fields(NODE, LAUNCH)),
        ((Atom("heartbeat"),), heartbeat_fields()),
    ][kind]
    try:
        assert len(receive(ours, (*tag, {**fields, key: value}))) == 1
    except ProtocolError as error:
        assert error.reason == "protocol"


# ---- commands ---------------------------------------------------------------------------------------


def test_sends_a_policy_with_cookies_as_binaries_and_reads_the_reply() -> None:
    ours = at(State.OPEN)
    cookies = {"agent@127.0.0.1": Secret(b"psecret")}
    ours.send_command(7, Command.POLICY, {"document": b"{distsec_policy}.", "cookies": cookies})
    assert said(ours) == [
        (
            "command",
            7,
            "policy",
            {"document": b"{distsec_policy}.", "cookies": {b"agent@127.0.0.1": b"psecret"}},
        )
    ]
    reply = (Atom("reply"), 7, Atom("ok"), atoms(generation=8, digest=DIGEST))
    assert receive(ours, reply) == [Reply(7, True, {"generation": 8, "digest": DIGEST.decode()})]
    assert receive(ours, reply) == []  # once is enough


def test_reads_a_status_reply_as_a_snapshot_and_an_error_as_its_reason() -> None:
    ours = at(State.OPEN)
    ours.send_command(1, Command.STATUS, {})
    ours.send_command(2, Command.POLICY, {"document": b"", "cookies": {}})
    ours.send_command(3, Command.POLICY, {"document": b"", "cookies": {}})
    status, links, newer = receive(
        ours,
        (Atom("reply"), 1, Atom("ok"), snapshot_fields(NODE, LAUNCH)),
        (Atom("reply"), 2, Atom("error"), atoms(reason="links_remain", detail=b"x\ny")),
        (Atom("reply"), 3, Atom("error"), atoms(reason="of_a_newer_agent")),
    )
    assert isinstance(status, Reply)
    assert isinstance(status.fields["snapshot"], Snapshot)
    assert links == Reply(2, False, {"reason": "links_remain", "detail": r"x\x0ay"})
    assert newer == Reply(3, False, {"reason": "other", "detail": None})


CA_DIGEST = b"ab" * 32
LINK_PROOF = atoms(peer=b"b@h", serial=b"0a", not_after=7, cookie="other")


def test_reads_what_a_node_serves_and_which_links_were_proven_anew() -> None:
    ours = at(State.OPEN)
    ours.send_command(1, Command.RELOAD, {})
    ours.send_command(2, Command.RENEW, {"peers": {"b@h": 1}})
    ours.send_command(3, Command.RELOAD, {})
    assert said(ours)[1] == ("command", 2, "renew", {"peers": {b"b@h": 1}})
    failed = atoms(peer=b"c@h", reason="unreachable")
    served, renewed, rejected = receive(
        ours,
        (Atom("reply"), 1, Atom("ok"), atoms(serial=b"0a", not_after=7, trusted=[CA_DIGEST])),
        (Atom("reply"), 2, Atom("ok"), atoms(renewed=[LINK_PROOF], failed=[failed])),
        (Atom("reply"), 3, Atom("error"), atoms(reason="certificate_rejected", detail=b"why")),
    )
    assert served == Reply(1, True, {"served": Served("0a", 7, (CA_DIGEST.decode(),))})
    proofs = {
        "renewed": (LinkProof("b@h", "0a", 7, cookie_current=False),),
        "failed": (LinkUnproven("c@h", "unreachable"),),
    }
    assert renewed == Reply(2, True, proofs)
    assert rejected == Reply(3, False, {"reason": "certificate_rejected", "detail": "why"})


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Command.RELOAD, atoms(serial=b"0a", not_after=-1, trusted=[])),
        (Command.RELOAD, atoms(serial=b"0a", not_after=7, trusted=[b"short"])),
        (Command.RELOAD, atoms(serial=b"0a", not_after=7, trusted=[CA_DIGEST] * 65)),
        (Command.RELOAD, atoms(not_after=7, trusted=[])),
        (Command.RENEW, atoms(renewed=[])),
        (Command.RENEW, atoms(renewed=[LINK_PROOF], failed=[b"c@h"])),
        (Command.RENEW, atoms(renewed=[{**LINK_PROOF, Atom("cookie"): b"current"}], failed=[])),
        (Command.RENEW, atoms(renewed=[{**LINK_PROOF, Atom("cookie"): Atom("none")}], failed=[])),
        (Command.RENEW, atoms(renewed=[], failed=[atoms(peer=b"c@h", reason=b"text")])),
    ],
)
def test_refuses_an_answer_about_certificates_that_is_not_as_specified(
    kind: Command, fields: dict[Any, Any]
) -> None:
    ours = at(State.OPEN)
    ours.send_command(1, kind, {"peers": {}} if kind is Command.RENEW else {})
    said(ours)
    refused(ours, (Atom("reply"), 1, Atom("ok"), fields))


@pytest.mark.parametrize(
    "reply",
    [
        (Atom("reply"), True, Atom("ok"), {}),
        (Atom("reply"), [], Atom("ok"), {}),
        (Atom("reply"), 1, Atom("maybe"), {}),
        (Atom("reply"), 1, b"ok", {}),
        (Atom("reply"), 1, Atom("ok"), atoms(generation=8, digest=b"short")),
        (Atom("reply"), 1, Atom("error"), {}),
        (Atom("reply"), 1, Atom("error"), atoms(reason=[])),
        (Atom("reply"), 1, Atom("ok"), []),
    ],
)
def test_refuses_a_reply_that_is_not_as_specified(reply: Term) -> None:
    ours = at(State.OPEN)
    ours.send_command(1, Command.POLICY, {"document": b"", "cookies": {}})
    said(ours)
    refused(ours, reply)
    assert ours.outstanding == 1


def test_acknowledges() -> None:
    ours = at(State.OPEN)
    ours.acknowledge(Lane.CRITICAL, 12)
    assert said(ours) == [("ack", "critical", 12)]


def test_refuses_to_send_what_the_agent_would_not_take() -> None:
    ours = at(State.OPEN)
    with pytest.raises(ValueError, match="too long"):
        ours.send_command(1, Command.POLICY, {"document": bytes(MAX_FRAME_BYTES), "cookies": {}})
    assert ours.outstanding == 0


# ---- as security events -----------------------------------------------------------------------------


def event_of(term: Term) -> LaneEvent:
    (event,) = receive(at(State.OPEN), term)
    assert isinstance(event, LaneEvent)
    return event


@pytest.mark.parametrize("reason", Reason)
def test_every_refusal_is_an_event_of_its_own_reason(reason: Reason) -> None:
    event = to_security_event(event_of(refusal(3, reason=str(reason), rule=b"cli-*@h")), NODE, 12.5)
    assert (event.type, event.severity) == REFUSAL_EVENTS[reason]
    assert (event.node, event.time, event.result, event.reason) == (NODE, 12.5, "deny", reason)
    assert (event.peer, event.address, event.direction) == ("evil@127.0.0.1", "127.0.0.1:40112", "in")
    assert (event.identity, event.rule) == ("spiffe://demo/node/127.0.0.1/evil", "cli-*@h")
    assert (event.serial, event.detail) == ("0a1b2c3d4e5f60718293a4b5c6d7e8f901020304", "on no list")
    assert (event.launch, event.sequence) == (LAUNCH, 3)
    assert event.is_refusal != (reason is Reason.UNLISTED_LINK)


def test_a_violation_is_critical_and_a_deny_whatever_the_node_says_of_it() -> None:
    event = to_security_event(event_of(critical(1, type=Atom("violation"), link=link_fields())), NODE, 1.0)
    assert (event.type, event.severity) == (EventType.UNAUTHORIZED_ACCESS, Severity.CRITICAL)
    assert (event.result, event.reason, event.peer) == ("deny", Reason.UNLISTED_LINK, "agent@127.0.0.1")
    assert event.is_violation


@pytest.mark.parametrize(
    ("fields", "kind", "severity", "reason"),
    [
        ({"type": "link_up", "link": link_fields()}, EventType.LINK_UP, Severity.INFO, None),
        ({"type": "link_down", "link": link_fields()}, EventType.LINK_DOWN, Severity.INFO, None),
        ({"type": "link_renewed", "link": link_fields()}, EventType.LINK_RENEWED, Severity.INFO, None),
        (
            {"type": "link_up", "link": link_fields(verdict="deny", reason="denied")},
            EventType.LINK_UP,
            Severity.WARNING,
            "denied",
        ),
        (
            {"type": "policy_applied", "generation": 8, "digest": DIGEST},
            EventType.POLICY_APPLIED,
            Severity.NOTICE,
            None,
        ),
        (
            {"type": "policy_rejected", "reason": "signature"},
            EventType.MESSAGE_SIGNATURE_INVALID,
            Severity.CRITICAL,
            "signature",
        ),
        (
            {"type": "guard", "detail": b"x"},
            EventType.UNAUTHORIZED_ACCESS,
            Severity.CRITICAL,
            "guard_changed",
        ),
    ],
)
def test_other_events_by_kind(
    fields: dict[str, Any], kind: EventType, severity: Severity, reason: str | None
) -> None:
    event = to_security_event(event_of(critical(1, **fields)), NODE, 1.0)
    assert (event.type, event.severity, event.reason) == (kind, severity, reason)


def test_events_of_the_connection_itself() -> None:
    assert agent_connected(NODE, LAUNCH, 1.0).launch == LAUNCH
    assert agent_lost(NODE, "gone\n", 1.0).detail == r"gone\x0a"
    assert agent_refused(NODE, "term", "x", 1.0).type is EventType.AGENT_REFUSED
    assert agent_refused(NODE, "proof", "x", 1.0).type is EventType.MESSAGE_SIGNATURE_INVALID


def test_a_frame_of_ours_is_a_term_of_theirs() -> None:
    assert packet((Atom("ack"), Atom("critical"), 1))[4:] == encode((Atom("ack"), Atom("critical"), 1))
