"""What listeners serve: real TLS servers in every wrong state, and the judge alone."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from distsec.model.cluster import Certificate
from distsec.posture.check import judge
from distsec.posture.collect.gather import gather_listener
from distsec.posture.facts import EpmdFact, Facts, ListenerFact, Served
from distsec.posture.finding import Code, Severity
from tests.posture.planted import ca, issue, key_pem, pem, told

NOW = 1_800_000_000.0
Configure = Callable[[ssl.SSLContext], object]


class Pair:
    """A CA, and a key and certificate of a server; `ends`: days from now."""

    def __init__(self, directory: Path, ends: float = 100) -> None:
        ca_key, ca_certificate = ca("test")
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = issue(
            public=key.public_key(),
            issuer=ca_certificate,
            issuer_key=ca_key,
            begins=timedelta(days=-200),
            days=200 + ends,
        )
        self.chain, self.key, self.ca = (directory / name for name in ("chain.pem", "key.pem", "ca.pem"))
        self.chain.write_bytes(pem(leaf))
        self.key.write_bytes(key_pem(key))
        self.ca.write_bytes(pem(ca_certificate))


@contextlib.contextmanager
def serving(talk: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server on loopback that talks to each connection; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = False

        def accept() -> None:
            while not ended:
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(5)
                        talk(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        yield port
        ended = True
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
        thread.join(10)


def tls_server(pair: Pair, configure: Configure) -> Callable[[socket.socket], object]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.chain, pair.key)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pair.ca)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        configure(context)

    def talk(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1)

    return talk


def checked(port: int) -> Facts:
    return gather_listener("127.0.0.1", port, now=time.time())


def nothing(context: ssl.SSLContext) -> None:
    pass


def no_demand(context: ssl.SSLContext) -> None:
    context.verify_mode = ssl.CERT_NONE


def optional(context: ssl.SSLContext) -> None:
    context.verify_mode = ssl.CERT_OPTIONAL


def also_1_2(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2


def only_1_2(context: ssl.SSLContext) -> None:
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2


def only_1_2_without_demand(context: ssl.SSLContext) -> None:
    only_1_2(context)
    context.verify_mode = ssl.CERT_NONE


def weak_demand_below_1_3(context: ssl.SSLContext) -> None:
    only_1_2(context)
    context.set_ciphers("ALL:aNULL:@SECLEVEL=0")


def old(context: ssl.SSLContext) -> None:
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1


@pytest.mark.parametrize(
    ("configure", "codes"),
    [
        (nothing, set()),
        (no_demand, {Code.LISTENER_NO_CLIENT_CERTIFICATE}),
        (optional, {Code.LISTENER_NO_CLIENT_CERTIFICATE}),
        (also_1_2, {Code.LISTENER_TLS12}),
        (only_1_2, {Code.LISTENER_TLS12}),
        (only_1_2_without_demand, {Code.LISTENER_TLS12, Code.LISTENER_NO_CLIENT_CERTIFICATE}),
        (weak_demand_below_1_3, {Code.LISTENER_TLS12, Code.LISTENER_WEAK_CIPHER}),
        (old, {Code.LISTENER_OLD_TLS}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_tls_server_is_told_as_it_is(tmp_path: Path, configure: Configure, codes: set[Code]) -> None:
    with serving(tls_server(Pair(tmp_path), configure)) as port:
        facts = checked(port)
    assert told(judge(facts)) == codes, facts.listeners
    served = facts.listeners[0].served
    assert served is not None and served.version and served.cipher
    assert served.certificate is not None


def test_an_expired_certificate_is_seen_at_the_listener(tmp_path: Path) -> None:
    with serving(tls_server(Pair(tmp_path, ends=-1), nothing)) as port:
        assert told(judge(checked(port))) == {Code.LISTENER_CERTIFICATE_EXPIRED}


def test_a_distribution_in_plaintext_is_told(tmp_path: Path) -> None:
    with serving(lambda connection: (connection.recv(100), connection.sendall(b"\0\x03sok"))) as port:
        [finding] = [each for each in judge(checked(port)) if each.severity is not Severity.INFO]
    assert (finding.code, finding.severity) == (Code.LISTENER_PLAINTEXT, Severity.HIGH)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x03\xff\xff" + b"\2" * 70_000], ids=len
)
def test_whatever_else_answers_is_unclear_and_holds_nothing_up(answer: bytes) -> None:
    began = time.monotonic()
    with serving(lambda connection: connection.sendall(answer)) as port:
        assert told(judge(checked(port))) == {Code.LISTENER_UNCLEAR}
    assert time.monotonic() - began < 15


# ---- the judge alone ----------

WELL = Served(
    reached=True,
    tls=True,
    version="TLSv1.3",
    cipher="TLS_AES_128_GCM_SHA256",
    demands_certificate=True,
    tls12=False,
    certificate=Certificate(None, "0a1b", "CN=ca", int(NOW) + 10_000),
)
OURS = ListenerFact("a@127.0.0.1", "127.0.0.1", 9100, WELL, wanted_address="127.0.0.1", serial="0a1b")


@pytest.mark.parametrize(
    ("listener", "codes"),
    [
        (OURS, set()),
        (replace(OURS, address="10.0.0.7", wanted_address="10.0.0.7"), set()),
        (replace(OURS, address="0.0.0.0"), {Code.DISTRIBUTION_EXPOSED}),
        (replace(OURS, address="0.0.0.0", wanted_address="0.0.0.0"), {Code.DISTRIBUTION_EXPOSED}),
        (replace(OURS, address="10.0.0.7"), {Code.DISTRIBUTION_EXPOSED}),
        (replace(OURS, address="::ffff:10.0.0.7", wanted_address=None), {Code.DISTRIBUTION_EXPOSED}),
        (replace(OURS, address="::1", wanted_address=None), set()),
        (replace(OURS, serial="ff"), {Code.LISTENER_CERTIFICATE_DIFFERS}),
        (replace(OURS, stranger="process 7 (nc)"), {Code.PORT_OF_STRANGER}),
        (replace(OURS, missing=True, served=None), {Code.LISTENER_MISSING}),
        (replace(OURS, served=replace(WELL, tls=False, plaintext=True)), {Code.LISTENER_PLAINTEXT}),
        (replace(OURS, served=replace(WELL, tls=False, plaintext=True), cookies_only=True), set()),
        (replace(OURS, served=replace(WELL, demands_certificate=None)), {Code.LISTENER_UNCLEAR}),
    ],
)
def test_a_listener_is_judged_by_address_and_answer(listener: ListenerFact, codes: set[Code]) -> None:
    assert told(judge(Facts(now=NOW, listeners=(listener,)))) == codes


def test_what_is_open_to_networks_is_worse_than_on_loopback() -> None:
    plain = replace(WELL, tls=False, plaintext=True)
    severities = [
        {each.severity for each in judge(Facts(now=NOW, listeners=(replace(OURS, address=a, served=plain),)))}
        for a in ("127.0.0.1", "10.0.0.7")
    ]
    assert Severity.CRITICAL not in severities[0] and Severity.CRITICAL in severities[1]


@pytest.mark.parametrize(
    ("address", "exposed"), [("127.0.0.1", False), ("::1", False), ("::", True), ("10.1.1.1", True)]
)
def test_an_epmd_beyond_loopback_is_told(address: str, exposed: bool) -> None:
    findings = judge(Facts(now=NOW, epmds=(EpmdFact(address, 4369, "epmd (process 5)"),)))
    assert told(findings) == ({Code.EPMD_EXPOSED} if exposed else set())
