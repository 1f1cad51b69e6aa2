"""The carrier's second handshake, by which a link goes on with other certificates, asked for by those who
have no right to it: nothing that they send extends a link, ends one, or opens one."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.releases import OTPS, Otp
from tests.system.certificates import Leaf, TestAuthority
from tests.system.cluster import HOST, Cluster
from tests.system.intruder import tcp

ALPN = "distsec-proof/1"
A, B, C = (f"{name}@{HOST}" for name in "abc")
Known = tuple[str, str, str]  # link, serial, not_after


@pytest.fixture(scope="module", params=OTPS, ids=str)
def cluster(request: pytest.FixtureRequest, agent_ebin: Path, beams: Path) -> Iterator[Cluster]:
    otp: Otp = request.param
    with Cluster(otp, beams, ["a", "b", "c"]) as made:
        made.settings["security"]["distribution"]["connect"] = "none"
        made.init()
        made.run()
        made.wait_running()
        assert made.erl("b", f"net_kernel:connect_node('{A}')") == "true"
        made.wait(lambda: ("a", "b") in made.links(), "the link")
        yield made


@pytest.fixture(autouse=True)
def _release(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    request.node.user_properties.append(("otp", next(iter(cluster.otps.values())).stands_for))


@pytest.fixture
def known(cluster: Cluster) -> Iterator[Known]:
    """What the victim `a` knows of its link with b; after the test it knows the same, and has no other."""
    before = link_of(cluster)
    yield before
    assert link_of(cluster) == before
    assert cluster.erl("a", "nodes(connected)") == f"['{B}']"


def link_of(cluster: Cluster) -> Known:
    text = cluster.erl(
        "a",
        f'{{ok, _, F}} = distsec_attempts:of_link(<<"{B}">>), '
        "{binary:encode_hex(maps:get(link, F)), maps:get(serial, F), maps:get(not_after, F)}",
    )
    found = re.fullmatch(r'\{<<"(\w+)">>,\s*<<"(\w+)">>,\s*(\d+)\}', text)
    assert found, text
    return found[1].lower(), found[2], found[3]


def leaf(cluster: Cluster, name: str, authority: TestAuthority | None = None) -> Leaf:
    """A good certificate for `name`, which the node itself does not have: stolen, or issued by mistake."""
    issuer = authority or TestAuthority.of_cluster(cluster.state)
    return issuer.issue(
        cluster.directory / f"leaf-{os.urandom(4).hex()}", [f"spiffe://demo/node/{HOST}/{name}"]
    )


def connect(cluster: Cluster, own: Leaf | None) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    if own:
        context.load_cert_chain(own.certificate, own.key)
    return context.wrap_socket(tcp(cluster.port("a"), HOST))


def say(connection: ssl.SSLSocket, payload: bytes) -> bytes:
    """Sends a frame; the one that answers it, or b"" where the victim ends the connection."""
    try:
        connection.sendall(struct.pack(">I", len(payload)) + payload)
        header = _exactly(connection, 4)
        return _exactly(connection, struct.unpack(">I", header)[0]) if header else b""
    except (OSError, ValueError):
        return b""


def _exactly(connection: socket.socket, size: int) -> bytes:
    read = b""
    while len(read) < size:
        more = connection.recv(size - len(read))
        if not more:
            return b""
        read += more
    return read


def opening(link: str, name: str, nonce: bytes = b"n" * 32) -> bytes:
    return b"\x01" + bytes.fromhex(link) + nonce + name.encode()


def expect(cluster: Cluster, before: int, reason: str) -> None:
    """Exactly one refusal more, for that reason."""

    def new() -> list[str]:
        return [
            event["reason"]
            for kind in ("CertificateValidationFailed", "UnauthorizedAccess", "NodeConnectionAttempt")
            for event in cluster.events(kind, result="deny", node=A)
        ]

    cluster.wait(lambda: len(new()) > before, f"a refusal: {reason}")
    assert len(new()) == before + 1
    assert reason in new()


def refusals(cluster: Cluster) -> int:
    kinds = ("CertificateValidationFailed", "UnauthorizedAccess", "NodeConnectionAttempt")
    return sum(len(cluster.events(kind, result="deny", node=A)) for kind in kinds)


def mac(role: str, cookie: str, link: str, nonces: bytes, dialler: str) -> bytes:
    parts = [b"distsec proof 1 ", role.encode(), bytes.fromhex(link), nonces, dialler.encode(), A.encode()]
    message = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return hmac.new(cookie.encode(), message, hashlib.sha256).digest()


def test_who_shows_no_certificate_of_the_cluster_is_refused_as_ever(cluster: Cluster, known: Known) -> None:
    for own, reason in (
        (None, "certificate_required"),
        (leaf(cluster, "b", TestAuthority.foreign()), "unknown_ca"),
    ):
        before = refusals(cluster)
        try:
            with connect(cluster, own) as connection:
                assert say(connection, opening(known[0], B)) == b""
        except ssl.SSLError:
            pass
        expect(cluster, before, reason)


def test_an_insider_cannot_prove_anothers_link(cluster: Cluster, known: Known) -> None:
    before = refusals(cluster)
    with connect(cluster, leaf(cluster, "c")) as connection:
        assert say(connection, opening(known[0], B)) == b""
    expect(cluster, before, "name_not_in_certificate")


def test_who_has_no_link_proves_nothing_and_gets_none(cluster: Cluster, known: Known) -> None:
    before = refusals(cluster)
    with connect(cluster, leaf(cluster, "c")) as connection:
        assert say(connection, opening(known[0], C)) == b""
    assert refusals(cluster) == before


def test_the_right_name_does_not_do_without_the_transcript_of_its_link(
    cluster: Cluster, known: Known
) -> None:
    with connect(cluster, leaf(cluster, "b")) as connection:
        assert say(connection, opening("00" * 32, B)) == b""


def test_nor_with_the_transcript_and_without_the_cookie(cluster: Cluster, known: Known) -> None:
    before = refusals(cluster)
    with connect(cluster, leaf(cluster, "b")) as connection:
        answer = say(connection, opening(known[0], B))
        assert len(answer) == 65
        nonces = b"n" * 32 + answer[1:33]
        assert say(connection, b"\x01" + mac("dialler", "a guess", known[0], nonces, B)) == b""
    expect(cluster, before, "bad_cookie")


def test_its_own_answer_sent_back_is_no_proof(cluster: Cluster, known: Known) -> None:
    before = refusals(cluster)
    with connect(cluster, leaf(cluster, "b")) as connection:
        answer = say(connection, opening(known[0], B))
        assert say(connection, b"\x01" + answer[33:]) == b""
    expect(cluster, before, "bad_cookie")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01",
        b"N" + b"\0" * 14,
        b"\x02" + b"x" * 70,
        b"\x01" + b"x" * 64 + b"not a name",
        b"\xff" * 500,
    ],
    ids=["empty", "short", "distribution", "version", "name", "long"],
)
def test_what_is_no_opening_is_malformed(cluster: Cluster, known: Known, frame: bytes) -> None:
    before = refusals(cluster)
    with connect(cluster, leaf(cluster, "b")) as connection:
        assert say(connection, frame) == b""
    expect(cluster, before, "malformed")


def test_with_everything_right_the_link_is_that_of_the_certificate_shown(cluster: Cluster) -> None:
    """The counter-check: who has the node's identity, its link's transcript and its cookie is that node."""
    own = leaf(cluster, "b")
    link, serial, _ = link_of(cluster)
    assert serial != own.serial
    cookie = cluster.erl("a", f"auth:get_cookie('{B}')")
    with connect(cluster, own) as connection:
        answer = say(connection, opening(link, B))
        nonces = b"n" * 32 + answer[1:33]
        assert hmac.compare_digest(answer[33:], mac("acceptor", cookie, link, nonces, B))
        assert say(connection, b"\x01" + mac("dialler", cookie, link, nonces, B)) == b"\x01\x01"
    assert link_of(cluster)[1] == own.serial
