"""What `beam.render` writes is what a real `erl` reads, for hostile names and paths too."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from distsec.beam import aflags, render
from distsec.beam.erlang_text import Symbol, Term, erlang_string, erlang_term
from distsec.beam.term import decode
from distsec.model.cluster import Carrier
from distsec.model.cookies import Cookies, CookieSet
from distsec.model.names import NodeName
from distsec.model.policy import Phase, Policy, PolicyPeer, PolicyRule
from distsec.model.secret import Secret
from tests.releases import Otp
from tests.system.certificates import TestAuthority
from tests.system.cluster import free_ports
from tests.waiting import wait_until

pytestmark = pytest.mark.otp

HERE = Path(__file__).parent
LOCALES = ("C.UTF-8", "C")
"""In the first a path is a list of code points to Erlang, in the second a list of bytes."""

HOSTILE = 'it\'s "a" b\\c\td\ne é 日本 😀 $(x) `y` #z %w ~ -x \x01\x7f'
SIGNER = Ed25519PrivateKey.generate()
NODE = NodeName.parse("a@127.0.0.1")
TLS = (Carrier.DISTSEC, Carrier.INET_TLS)

paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30).map(
    "/".__add__
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
addresses = st.sampled_from(["127.0.0.1", "192.0.2.7", "::1", "2001:db8::1"])
ports = st.integers(1, 65_535)
cookies = st.from_regex(r"[dp][0-9a-f]{64}", fullmatch=True).map(lambda text: Secret(text.encode()))
policies = st.builds(
    Policy,
    cluster=texts,
    generation=st.integers(0, 2**64),
    issued_at=st.integers(-(2**40), 2**40),
    peers=st.lists(
        st.builds(PolicyPeer, name=texts, identity=texts, phase=st.sampled_from(Phase))
        | st.builds(PolicyPeer, name=texts, identity=texts, address=addresses, port=ports),
        max_size=3,
    ).map(tuple),
    rules=st.lists(
        st.builds(
            PolicyRule,
            pattern=texts,
            identity=texts,
            max_live=st.integers(1, 1000),
            nodes=st.lists(texts, max_size=2).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    denied=st.frozensets(texts, max_size=3),
    revoked=st.frozensets(texts, max_size=3),
    connect=st.sampled_from(["mesh", "none"]),
    require_identity=st.booleans(),
)


def collected(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """`count` examples, so that one run of erl answers for all of them."""
    found: list[Any] = []

    @settings(max_examples=count, deadline=None, database=None)
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


# ---- files -------------------------------------------------------------------------------------------------


def test_any_policy_is_read_back_with_its_signature(otp: Otp, tmp_path: Path) -> None:
    batch = collected(policies, 150)
    questions: list[Term] = []
    for number, policy in enumerate(batch):
        file = tmp_path / f"{number}.term"
        file.write_bytes(render.policy_document(policy, SIGNER.sign))
        questions.append((Symbol("consult"), str(file)))
    for policy, answer in zip(batch, ask_erl(otp, tmp_path, questions), strict=True):
        ok, [(tag, fields), (signature, _)] = answer
        assert (ok, tag, signature) == ("ok", "distsec_policy", "signature")
        assert fields == {
            "version": 1,
            "cluster": policy.cluster.encode(),
            "generation": policy.generation,
            "issued_at": policy.issued_at,
            "connect": policy.connect,
            "require_identity": policy.require_identity,
            "peers": [
                {
                    "name": peer.name.encode(),
                    "identity": peer.identity.encode(),
                    "phase": peer.phase.value,
                    "address": peer.address and peer.address.encode(),
                    "port": peer.port,
                }
                for peer in policy.peers
            ],
            "rules": [
                {
                    "pattern": rule.pattern.encode(),
                    "identity": rule.identity.encode(),
                    "max_live": rule.max_live,
                    "nodes": [name.encode() for name in rule.nodes],
                }
                for rule in policy.rules
            ],
            "denied": sorted(name.encode() for name in policy.denied),
            "revoked": sorted(serial.encode() for serial in policy.revoked),
        }


def test_guard_and_cookies_are_read_back_for_any_directory(otp: Otp, tmp_path: Path) -> None:
    batch = collected(
        st.tuples(
            paths, texts, addresses, ports, cookies, st.dictionaries(texts, cookies), st.sampled_from(TLS)
        ),
        100,
    )
    questions: list[Term] = []
    for number, (directory, cluster, address, port, default, pairs, carrier) in enumerate(batch):
        guard, cookie = tmp_path / f"{number}.guard", tmp_path / f"{number}.cookie"
        guard.write_bytes(
            render.guard_file(
                cluster=cluster,
                node=NODE,
                carrier=carrier,
                directory=directory,
                address=address,
                port=port,
                policy_key=b"k" * 32,
                optfile=b"[].",
            )
        )
        cookie.write_bytes(render.cookie_file(CookieSet(0, Cookies(default, pairs))))
        questions += [(Symbol("consult"), str(guard)), (Symbol("consult"), str(cookie))]
    answers = iter(ask_erl(otp, tmp_path, questions))
    for directory, cluster, address, port, default, pairs, carrier in batch:
        ok, [(tag, guard)] = next(answers)
        assert (ok, tag) == ("ok", "distsec_guard")
        assert guard["optfile"] == os.fsencode(f"{directory}/dist.conf")
        assert (guard["node"], guard["cluster"], guard["port"]) == (b"a@127.0.0.1", cluster.encode(), port)
        version = ip_address(address).version
        assert len(guard["interface"]) == (4 if version == 4 else 8)
        stock = "inet_tls" if version == 4 else "inet6_tls"
        assert text_of(guard["proto_dist"]) == ("distsec" if carrier is Carrier.DISTSEC else stock)
        assert next(answers) == (
            "ok",
            [
                (
                    "distsec_cookies",
                    {
                        "version": 1,
                        "default": default.reveal(),
                        "peers": {name.encode(): cookie.reveal() for name, cookie in pairs.items()},
                    },
                )
            ],
        )


def test_the_optfile_is_read_back_by_ssl_for_any_directory(otp: Otp, tmp_path: Path) -> None:
    batch = collected(paths, 100)
    questions: list[Term] = []
    for number, directory in enumerate(batch):
        file = tmp_path / f"{number}.conf"
        file.write_bytes(render.optfile(directory=directory))
        questions.append((Symbol("optfile"), str(file).encode()))
    for directory, answer in zip(batch, ask_erl(otp, tmp_path, questions), strict=True):
        roles = {role: dict(options) for role, options in answer}
        assert roles.keys() == {"server", "client"}
        for role, options in roles.items():
            assert options["certfile"] == os.fsencode(f"{directory}/certificate.pem")
            assert options["keyfile"] == os.fsencode(f"{directory}/key.pem")
            assert options["cacertfile"] == os.fsencode(f"{directory}/trust.pem")
            assert options["verify"] == "verify_peer"
            assert options["versions"] == ["tlsv1.3"]
            assert options["verify_fun"] == (("distsec_verify", "verify", 3), {"role": role})
        assert roles["server"]["fail_if_no_peer_cert"] is True
        assert "fail_if_no_peer_cert" not in roles["client"]


# ---- TLS ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locale", LOCALES)
def test_the_options_shake_hands_in_a_hostile_directory(otp: Otp, locale: str, tmp_path: Path) -> None:
    directory = node_directory(tmp_path)
    (directory / "dist.conf").write_bytes(render.optfile(directory=str(directory)))
    [answer] = ask_erl(otp, tmp_path, [shake(directory)], locale=locale)
    assert answer == ("tlsv1.3", b"TLS_AES_128_GCM_SHA256", True)


def test_what_is_refused_as_illegal_is_what_ssl_refuses(otp: Otp, tmp_path: Path) -> None:
    """A release that takes one of these would be news for the table in beam.tls_options."""
    directory = node_directory(tmp_path)
    (directory / "dist.conf").write_bytes(render.optfile(directory=str(directory)))
    below_1_3: list[Term] = [
        (Symbol(name), True) for name in ("secure_renegotiate", "reuse_sessions", "client_renegotiation")
    ]
    server_only: list[Term] = [(Symbol("honor_cipher_order"), True)]
    if otp.release >= 27:  # 25 takes it silently
        server_only.append((Symbol("fail_if_no_peer_cert"), True))
    questions = [
        *(shake(directory, server=option) for option in below_1_3),
        *(shake(directory, client=option) for option in (*below_1_3, *server_only)),
        shake(directory, server=(Symbol("no_such_option"), True)),
    ]
    for question, answer in zip(questions, ask_erl(otp, tmp_path, questions), strict=True):
        assert answer[0] == "refused", question


def test_what_may_be_tuned_is_taken_by_ssl(otp: Otp, tmp_path: Path) -> None:
    directory = node_directory(tmp_path)
    extra: Mapping[str, Term] = {
        "ciphers": ["TLS_CHACHA20_POLY1305_SHA256"],
        "crl_check": False,
        "depth": 2,
        "hibernate_after": 5000,
        "key_update_at": 1_000_000,
        "log_level": Symbol("error"),
        "max_handshake_size": 65_536,
        "signature_algs": [Symbol("ecdsa_secp256r1_sha256"), Symbol("ecdsa_secp384r1_sha384")],
        "supported_groups": [Symbol("x25519"), Symbol("secp256r1")],
    }
    (directory / "dist.conf").write_bytes(
        render.optfile(
            directory=str(directory), extra_server={**extra, "honor_cipher_order": True}, extra_client=extra
        )
    )
    [answer] = ask_erl(otp, tmp_path, [shake(directory)])
    assert answer == ("tlsv1.3", b"TLS_CHACHA20_POLY1305_SHA256", True)


def shake(directory: Path, *, server: Term = None, client: Term = None) -> Term:
    """A question: do the options of the optfile there, with one more before them, make a TLS connection?"""
    extras: list[Term] = [[] if extra is None else [extra] for extra in (server, client)]
    return (Symbol("shake"), os.fsencode(directory / "dist.conf"), *extras)


# ---- flags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locale", LOCALES)
def test_any_word_comes_through_erlexec_unchanged(otp: Otp, locale: str, tmp_path: Path) -> None:
    batch = [f"/{HOSTILE}", *collected(paths, 120)]
    flags = " ".join(f"-word{number} {aflags.escape_for_erlexec(word)}" for number, word in enumerate(batch))
    questions: list[Term] = [(Symbol("argument"), Symbol(f"word{number}")) for number in range(len(batch))]
    answers = ask_erl(otp, tmp_path, questions, locale=locale, aflags=flags)
    for word, answer in zip(batch, answers, strict=True):
        ok, [[characters]] = answer
        assert ok == "ok"
        expected = [ord(character) for character in word] if locale == "C.UTF-8" else list(word.encode())
        assert list(characters) == expected


def test_a_path_that_is_not_utf_8_would_be_lost(otp: Otp, tmp_path: Path) -> None:
    """Why `beam.render` refuses it; where this fails, the refusal can go."""
    flags = "-word " + os.fsdecode(b"/\xff")
    [answer] = ask_erl(otp, tmp_path, [(Symbol("argument"), Symbol("word"))], aflags=flags)
    _, [[value]] = answer
    assert value[0] == "error"


# ---- two nodes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("carrier", list(Carrier), ids=str)
def test_two_nodes_in_hostile_directories_are_linked_by_what_was_rendered(
    otp: Otp, agent_ebin: Path, carrier: Carrier, locale: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        bob, alice = cluster(tmp_path, agent_ebin, carrier, "127.0.0.1")
        stack.enter_context(running(otp, bob, locale))
        assert ping(otp, alice, bob, locale) == "RESULT pong 'alice@127.0.0.1'"
    for node in (alice, bob):
        assert not (node.directory / "guard.refused").exists()
    assert not (tmp_path / ".erlang.cookie").exists()


@pytest.mark.parametrize("carrier", list(Carrier), ids=str)
def test_two_nodes_are_linked_over_ipv6(otp: Otp, agent_ebin: Path, carrier: Carrier, tmp_path: Path) -> None:
    with ExitStack() as stack:
        bob, alice = cluster(tmp_path, agent_ebin, carrier, "::1")
        stack.enter_context(running(otp, bob, "C.UTF-8"))
        assert ping(otp, alice, bob, "C.UTF-8") == "RESULT pong 'alice@::1'"


@dataclass(frozen=True, slots=True)
class Node:
    name: NodeName
    directory: Path
    address: str
    port: int
    aflags: str


def cluster(base: Path, agent_ebin: Path, carrier: Carrier, address: str) -> tuple[Node, Node]:
    """Two nodes with all their files, and the agent itself, under a hostile directory."""
    ebin = base / HOSTILE / "ebin"
    shutil.copytree(agent_ebin, ebin)
    names = [NodeName.parse(f"{head}@{address}") for head in ("bob", "alice")]
    ports = free_ports(len(names), address)
    policy = Policy(
        cluster="demo",
        generation=1,
        issued_at=1,
        peers=tuple(
            PolicyPeer(str(name), name.identity("demo"), Phase.OPEN, address, port)
            for name, port in zip(names, ports, strict=True)
        ),
        connect="none",
        require_identity=carrier.encrypted,
    )
    bob, alice = (
        node_of(base, ebin, name, carrier, address, port, policy)
        for name, port in zip(names, ports, strict=True)
    )
    return bob, alice


def node_of(
    base: Path, ebin: Path, name: NodeName, carrier: Carrier, address: str, port: int, policy: Policy
) -> Node:
    directory = node_directory(base, name)
    content = render.optfile(directory=str(directory)) if carrier.encrypted else None
    if content is not None:
        (directory / "dist.conf").write_bytes(content)
    (directory / "policy.term").write_bytes(render.policy_document(policy, SIGNER.sign))
    pairs = {peer.name: Secret(b"p" + b"1" * 64) for peer in policy.peers if peer.name != str(name)}
    cookies = CookieSet(0, Cookies(Secret(b"d" + b"0" * 64), pairs))
    (directory / "cookie.term").write_bytes(render.cookie_file(cookies))
    guard = render.guard_file(
        cluster="demo",
        node=name,
        carrier=carrier,
        directory=str(directory),
        address=address,
        port=port,
        policy_key=SIGNER.public_key().public_bytes_raw(),
        optfile=content,
    )
    (directory / "guard.term").write_bytes(guard)
    flags = aflags.erl_aflags(
        node=name, carrier=carrier, directory=str(directory), ebin=str(ebin), address=address, port=port
    )
    return Node(name, directory, address, port, flags)


@contextmanager
def running(otp: Otp, node: Node, locale: str) -> Iterator[None]:
    """The node, until the end of the block, once it accepts connections."""
    log = node.directory / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [otp.erl, "-noinput"], env=environment(node, locale), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: process.poll() is not None or accepts(node), "the node to listen")
        assert process.poll() is None, log.read_text(errors="replace")
        yield
    finally:
        process.kill()
        process.wait()


def ping(otp: Otp, node: Node, peer: Node, locale: str) -> str:
    """What `node` says of a net_adm:ping/1 of `peer`, in its last line."""
    expression = f"io:format(\"RESULT ~w ~w~n\", [net_adm:ping('{peer.name}'), node()]), halt()."
    finished = subprocess.run(
        [otp.erl, "-noinput", "-eval", expression],
        env=environment(node, locale),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return (finished.stdout.splitlines() or [finished.stderr])[-1]


def environment(node: Node, locale: str) -> dict[str, str]:
    # The last parent that has no hostile name: the home of both nodes.
    home = node.directory.parents[2]
    return {"PATH": os.defpath, "HOME": str(home), "LANG": locale, "ERL_AFLAGS": node.aflags}


def accepts(node: Node) -> bool:
    try:
        with socket.create_connection((node.address, node.port), timeout=30):
            return True
    except OSError:
        return False


@cache
def authority() -> TestAuthority:
    return TestAuthority.foreign()


def node_directory(base: Path, name: NodeName = NODE) -> Path:
    """`<base>/<hostile>/nodes/<name>` with key, certificate and trust bundle, all of one CA."""
    directory = base / HOSTILE / "nodes" / name.head
    leaf = authority().issue(directory, [name.identity("demo")], host=name.host)
    leaf.ca.rename(directory / "trust.pem")
    return directory


# ---- erl ---------------------------------------------------------------------------------------------------


def ask_erl(
    otp: Otp, directory: Path, questions: Sequence[Term], *, locale: str = "C.UTF-8", aflags: str = ""
) -> list[Any]:
    """The answers of one run of erl to `questions` (render_readback.erlscript)."""
    source, sink = directory / "questions.term", directory / "answers.frames"
    source.write_text(erlang_term(list(questions)) + ".\n")
    bindings = f"[{{'In', {erlang_string(str(source))}}}, {{'Out', {erlang_string(str(sink))}}}]"
    script = erlang_string(str(HERE / "render_readback.erlscript"))
    finished = subprocess.run(
        [otp.erl, "-noinput", "-eval", f"{{ok, _}} = file:script({script}, {bindings}), halt()."],
        env={"PATH": os.defpath, "HOME": str(directory), "LANG": locale, "ERL_AFLAGS": aflags},
        capture_output=True,
        timeout=100,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    stream = sink.read_bytes()
    answers: list[Any] = []
    while stream:
        length = int.from_bytes(stream[:4])
        answers.append(decode(stream[4 : 4 + length]))
        stream = stream[4 + length :]
    return answers


def text_of(characters: Any) -> str:
    """An Erlang string, which comes as bytes in a list."""
    return bytes(characters).decode()
