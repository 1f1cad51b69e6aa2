"""Certificates that existed before distsec, and those of command-line tools: whom they let in, and whom not.

Each claim is a real TLS handshake and a distribution handshake made by hand, against a real node under the
carrier.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from distsec.observe.log import LINES_PER_SECOND
from tests.attacks.claim import HIDDEN, VISIBLE, Claim, claim
from tests.attacks.scene import VICTIM, Scene
from tests.releases import Otp

MAX_LIVE = 3
REAL = 200
"""Names that are claimed in real handshakes; the rest are decided in the victim as if they had come."""
MANY = 10_000
NOISE = 64
"""Atoms that a node makes in passing, whoever comes: modules that are loaded, and the like."""

TICK_SECONDS = 5.0

D, E, F = (f"{name}@127.0.0.1" for name in "def")
SUBJECT_OF_D = "CN=d.example,OU=Nodes,O=Example"
HOST_OF_E = "e.example.net"
URI_OF_F = "spiffe://other.example/f"
RULE, OPERATORS, ELSEWHERE = (f"{head}-*@127.0.0.1" for head in ("cli", "ops", "elsewhere"))
OPERATOR = "CN=operator,O=Example"

CLIENT_ONLY = (ExtendedKeyUsageOID.CLIENT_AUTH,)


@pytest.fixture(scope="module")
def scene_of_module(otp: Otp, beams: Path) -> Iterator[Scene]:
    scene = Scene(otp, beams, carrier="distsec")
    distribution = scene.cluster.settings["security"]["distribution"]
    distribution["allowed_nodes"] += [D, E, F]
    distribution["foreign_trust_domains"] = ["other.example"]
    distribution["rules"] = [
        {"names": [D], "kind": "node", "subject": SUBJECT_OF_D},
        {"names": [E], "dns": HOST_OF_E},
        {"names": [F], "identity": URI_OF_F},
        {"names": [RULE], "max_live": MAX_LIVE},
        {"names": [OPERATORS], "subject": OPERATOR},
        {"names": [ELSEWHERE], "nodes": ["b@127.0.0.1"]},
    ]
    with scene:
        yield scene


@dataclass(frozen=True, slots=True)
class Case:
    """A certificate, the name that is claimed with it, and what comes of it."""

    name: str
    certificate: dict[str, Any]
    identity: str
    reason: str | None = None  # None: it is let in
    flags: int = VISIBLE
    uris: tuple[str, ...] = field(default=())


TOOL, B, OLD = (f"spiffe://demo/{path}" for path in ("cli/x", "node/127.0.0.1/b", "node/127.0.0.1/old"))


ADMITTED = {
    "by its subject": Case(D, {"subject": SUBJECT_OF_D}, f"dn:{SUBJECT_OF_D}"),
    "by its host": Case(
        E, {"subject": "CN=whatever", "dns": ["a.example", "E.Example.NET"]}, "dn:CN=whatever"
    ),
    "by a foreign SPIFFE ID": Case(F, {}, URI_OF_F, uris=(URI_OF_F,)),
    "with a URI that is on no list beside its subject": Case(
        D, {"subject": SUBJECT_OF_D}, "https://pki.example/7", uris=("https://pki.example/7",)
    ),
    "an operator's tool": Case("ops-1@127.0.0.1", {"subject": OPERATOR}, f"dn:{OPERATOR}", flags=HIDDEN),
    "a tool whose certificate is for clients only": Case(
        "cli-1@127.0.0.1", {"usage": CLIENT_ONLY}, TOOL, flags=HIDDEN, uris=(TOOL,)
    ),
}

REFUSED = {
    "the same subject in another order": Case(
        D, {"subject": "O=Example,OU=Nodes,CN=d.example"}, "dn:O=Example,OU=Nodes,CN=d.example", "no_identity"
    ),
    "a subject that reads the same": Case(
        D,
        {"subject": r"CN=d.example\,OU\=Nodes,O=Example"},
        r"dn:CN=d.example\,OU=Nodes,O=Example",
        "no_identity",
    ),
    "the subject of one node and the host of another": Case(
        D, {"subject": SUBJECT_OF_D, "dns": [HOST_OF_E]}, f"dn:{SUBJECT_OF_D}", "no_identity"
    ),
    "a listed foreign SPIFFE ID and the subject of another node": Case(
        D, {"subject": SUBJECT_OF_D}, URI_OF_F, "no_identity", uris=(URI_OF_F,)
    ),
    "a node of this cluster with another node's subject and host": Case(
        D,
        {"subject": SUBJECT_OF_D, "dns": [HOST_OF_E]},
        B,
        "name_not_in_certificate",
        uris=(B,),
    ),
    "an unlisted certificate of this cluster with a listed host": Case(
        E,
        {"dns": [HOST_OF_E]},
        OLD,
        "not_allowed",
        uris=(OLD,),
    ),
    "a wildcard": Case(E, {"dns": ["*.example.net"]}, "dn:CN=test leaf", "no_identity"),
    "another listed name than its subject's": Case(
        E, {"subject": SUBJECT_OF_D}, f"dn:{SUBJECT_OF_D}", "name_not_in_certificate"
    ),
    "a node whose certificate is for clients only": Case(
        "b@127.0.0.1",
        {"usage": CLIENT_ONLY},
        B,
        "key_usage",
        uris=(B,),
    ),
    "a tool that is not hidden": Case(
        "ops-1@127.0.0.1", {"subject": OPERATOR}, f"dn:{OPERATOR}", "not_hidden", VISIBLE
    ),
    "a tool under a listed name": Case(D, {}, TOOL, "name_not_in_certificate", HIDDEN, (TOOL,)),
    "a tool whose rule is for another node": Case(
        "elsewhere-1@127.0.0.1", {}, TOOL, "not_allowed", HIDDEN, (TOOL,)
    ),
}


def attempt(scene: Scene, case: Case) -> Claim:
    leaf = scene.cluster.leaf(uris=list(case.uris), **case.certificate)
    head = case.name.partition("@")[0]
    cookie = scene.default_cookie() if "-" in head else scene.pair_cookie(head)
    return claim(scene.port, leaf, case.name, cookie, flags=case.flags)


@pytest.mark.parametrize("case", ADMITTED.values(), ids=ADMITTED)
def test_whoever_shows_what_is_listed_is_let_in_and_shown_by_it(scene: Scene, case: Case) -> None:
    def links() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = scene.cluster.status_of("a")["links"]
        return found

    made = attempt(scene, case)
    with made.connection:
        assert made.admitted, made
        # and that of the test before no more
        scene.cluster.wait(
            lambda: [link["peer"] for link in links()] == [case.name], "the link in the status"
        )
        (link,) = links()
        assert (link["identity"], link["verdict"]) == (case.identity, "allow")
    scene.wait_alone("the end of the link")
    scene.settle()
    assert not scene.denials()


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_whoever_shows_anything_else_is_refused_and_told_as_what_it_is(scene: Scene, case: Case) -> None:
    made = attempt(scene, case)
    made.connection.close()
    assert not made.admitted
    scene.cluster.wait(scene.denials, "the refusal in the log")
    scene.settle()
    (event,) = scene.denials()
    assert (event["reason"], event["identity"]) == (case.reason, case.identity)
    assert scene.refusals() == {(VICTIM, "in", case.reason): 1}
    scene.expect_nothing_happened()


# ---- names that a tool makes up


def wait_linked(scene: Scene, head: str) -> None:
    """The peer has its answer a moment before the victim has the link. A peer that goes in this moment, also
    when it is in nodes(connected) already, ends a handshake (`closed`) and no link.
    """
    up = "[binary_to_atom(Name) || {_, _, up, #{name := Name}} <- distsec_attempts:all()]"
    scene.cluster.wait(lambda: f"'{head}@127.0.0.1'" in scene.erl(up), f"the link of {head}")


@contextlib.contextmanager
def live_names(scene: Scene, leaf: Any) -> Iterator[ExitStack]:
    """As many links as one certificate may have under the rule, for as long as they are wanted."""
    with ExitStack() as links:
        connections = []
        for number in range(MAX_LIVE):
            made = claim(scene.port, leaf, f"cli-live{number}@127.0.0.1", scene.default_cookie())
            connections.append(links.enter_context(made.connection))
            assert made.admitted
            wait_linked(scene, f"cli-live{number}")
        links.enter_context(ticking(connections))
        yield links
    scene.wait_alone("the end of the links")


@contextlib.contextmanager
def ticking(connections: Sequence[ssl.SSLSocket]) -> Iterator[None]:
    """The victim ends a link of which it has heard nothing for net_ticktime, a minute."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(TICK_SECONDS):
            for connection in connections:
                connection.sendall(bytes(4))  # an empty frame

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)


def refusals_for(scene: Scene, reason: str) -> float:
    return sum(count for (_, _, why), count in scene.refusals().items() if why == reason)


def test_a_certificate_has_so_many_live_names_and_no_more(scene: Scene) -> None:
    leaf, other = (scene.cluster.leaf(uris=[f"spiffe://demo/cli/{name}"]) for name in ("many", "other"))
    cookie = scene.default_cookie()
    with live_names(scene, leaf) as links:
        for number in range(3):
            assert not claim(scene.port, leaf, f"cli-more{number}@127.0.0.1", cookie).admitted
        scene.cluster.wait(lambda: scene.denied()["too_many_names"] == 3, "the refusals")
        assert {event["rule"] for event in scene.denials()} <= {RULE}

        made = claim(scene.port, other, "cli-other@127.0.0.1", cookie)
        with made.connection:
            assert made.admitted, "it is a limit of the certificate, not of the rule"
            wait_linked(scene, "cli-other")

        links.close()
        scene.wait_alone("the end of the links")
        again = claim(scene.port, leaf, "cli-again@127.0.0.1", cookie)
        with again.connection:
            assert again.admitted
            wait_linked(scene, "cli-again")
    assert set(scene.denied()) == {"too_many_names"}, scene.denials()


def test_a_certificate_without_the_cookie_makes_no_more_atoms_than_live_names(scene: Scene) -> None:
    leaf = scene.cluster.leaf(uris=["spiffe://demo/cli/thief"])
    for number in range(REAL):
        made = claim(scene.port, leaf, f"cli-guess{number}@127.0.0.1", "a_guess")
        made.connection.close()
        assert not made.admitted
    scene.cluster.wait(
        lambda: sum(scene.denied().values()) == REAL, "every one of the refusals to be told or counted"
    )
    scene.settle()
    assert refusals_for(scene, "bad_cookie") == MAX_LIVE
    assert refusals_for(scene, "too_many_names") == REAL - MAX_LIVE
    made_atoms = scene.erl(
        f"length([N || N <- lists:seq(0, {REAL - 1}), try binary_to_existing_atom(iolist_to_binary("
        '["cli-guess", integer_to_list(N), "@127.0.0.1"])) of _ -> true catch _:_ -> false end])'
    )
    assert int(made_atoms) == MAX_LIVE
    scene.expect_nothing_happened()


_CLAIM_MANY = """
[Facts | _] = [F || {{_, _, up, #{{rule := <<"{rule}">>}} = F}} <- distsec_attempts:all()],
Like = maps:without([controller, socket, name, claimed, hidden], Facts),
Gone = fun G(Id) -> distsec_attempts:facts(Id) =:= undefined orelse begin erlang:yield(), G(Id) end end,
Try = fun(N) ->
          Name = iolist_to_binary(io_lib:format("cli-many~b@127.0.0.1", [N])),
          Frame = <<$N, {flags}:64, 1:32, (byte_size(Name)):16, Name/binary>>,
          Pid = spawn(fun() -> receive done -> ok end end),
          {{ok, Id}} = distsec_attempts:inbound(Pid, Like),
          {{ok, Name, true}} = distsec_gate:first_frame(Frame),
          ok = distsec_attempts:learn(Id, #{{name => Name, claimed => Name, hidden => true}}),
          {{deny, Reason, Rule}} = distsec_gate:decide(Id, distsec_attempts:facts(Id)),
          ok = distsec_attempts:refuse(Id, Reason, #{{rule => Rule}}),
          Pid ! done,
          true = Gone(Id)
      end,
lists:foreach(Try, lists:seq(1, {times}))
"""


def test_ten_thousand_names_under_a_glob_leave_series_atoms_and_log_where_they_were(scene: Scene) -> None:
    leaf = scene.cluster.leaf(uris=["spiffe://demo/cli/flood"])
    cookie = scene.default_cookie()
    many = _CLAIM_MANY.format(rule=RULE, flags=HIDDEN, times="{times}")
    with live_names(scene, leaf):
        assert not claim(scene.port, leaf, "cli-first@127.0.0.1", cookie).admitted
        scene.erl(many.replace("{times}", "1"))
        scene.cluster.wait(lambda: scene.denied()["too_many_names"] == 2, "the first refusals")
        scene.settle()
        atoms = int(scene.erl("erlang:system_info(atom_count)"))
        processes = int(scene.erl("erlang:system_info(process_count)"))
        known, lines = scene.series().keys(), len(scene.cluster.orchestrator_lines())
        printed, began = len(scene.cluster.log("a").splitlines()), time.monotonic()

        for number in range(REAL):
            made = claim(scene.port, leaf, f"cli-real{number}@127.0.0.1", cookie)
            made.connection.close()
            assert not made.admitted
        scene.erl(many.replace("{times}", str(MANY)), 200)

        scene.settle()
        assert scene.refusals() == {(VICTIM, "in", "too_many_names"): 2 + REAL + MANY}
        assert scene.series().keys() == known
        assert int(scene.erl("erlang:system_info(atom_count)")) - atoms < NOISE
        assert int(scene.erl("erlang:system_info(process_count)")) - processes < NOISE
        seconds = time.monotonic() - began
        # a second of the log may begin twice: by an event, and by the clock
        most = 2 * (LINES_PER_SECOND + 1) * (seconds + 2)
        assert len(scene.cluster.orchestrator_lines()) - lines < min(most, MANY / 2)
        assert len(scene.cluster.log("a").splitlines()) - printed < REAL
