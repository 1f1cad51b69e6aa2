"""The table of options that ssl refuses, against ssl itself, on every release."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from distsec.beam.erlang_text import Symbol, Term, erlang_string, erlang_term
from distsec.beam.tls_options import Role
from distsec.posture.judge.ssl_options import ROWS, refused
from tests.releases import Otp
from tests.system.cluster import free_ports

HERE = Path(__file__).resolve().parent
VERSIONS = (["tlsv1.3"], ["tlsv1.3", "tlsv1.2"], ["tlsv1.2"], ["tlsv1.2", "tlsv1.1", "tlsv1"])

OPTIONS = (
    *("beast_mitigation", "client_renegotiation", "cookie", "dh", "dhfile", "early_data", "fallback"),
    *("fail_if_no_peer_cert", "honor_cipher_order", "honor_ecc_order", "max_fragment_length"),
    *("middlebox_comp_mode", "next_protocols_advertised", "padding_check", "psk_identity", "reuse_sessions"),
    *("secure_renegotiate", "server_name_indication", "session_tickets", "supported_groups", "use_ticket"),
    *("depth", "hibernate_after", "log_level", "crl_check"),
)

VALUES: dict[str, Term] = {
    "beast_mitigation": Symbol("one_n_minus_one"),
    "client_renegotiation": False,
    "dh": b"\1",
    "depth": 2,
    "dhfile": "/x",
    "hibernate_after": 5000,
    "log_level": Symbol("notice"),
    "max_fragment_length": 512,
    "middlebox_comp_mode": False,
    "next_protocols_advertised": [],
    "psk_identity": "x",
    "server_name_indication": Symbol("disable"),
    "supported_groups": [Symbol("secp256r1")],
    "use_ticket": [],
}
"""A value that is right of itself; of the others `true` is."""

NEEDS_MORE = frozenset({"dh", "dhfile", "early_data", "use_ticket", "next_protocols_advertised"})
"""Refused for other reasons as well: a file that is not there, what must stand beside it, the value."""

OTHERS: list[tuple[Role, dict[str, Term]]] = [
    (Role.SERVER, {"verify": Symbol("verify_none")}),
    (Role.SERVER, {"verify": Symbol("nonsense")}),
    (Role.CLIENT, {"verify": Symbol("verify_none")}),
    (Role.SERVER, {"verify_fun": (Symbol("m"), Symbol("f"), [])}),
    (Role.CLIENT, {"versions": [Symbol("tlsv1.4")]}),
    (Role.SERVER, {"depth": 2}),
]


def cases() -> Iterator[tuple[Role, dict[str, Term]]]:
    for option, role, versions in product(OPTIONS, Role, VERSIONS):
        value = VALUES.get(option, True)
        if option == "session_tickets":
            value = Symbol("stateless") if role is Role.SERVER else Symbol("auto")
        yield role, {"versions": [Symbol(version) for version in versions], option: value}
    for role, options in OTHERS:
        yield role, {"versions": [Symbol("tlsv1.3")], **options}


def test_every_row_of_the_table_is_asked_about() -> None:
    assert {row.option for row in ROWS} <= set(OPTIONS)


def test_what_the_table_says_is_what_ssl_does(otp: Otp, tmp_path: Path) -> None:
    asked = list(cases())
    given: Term = [(Symbol(role), [(Symbol(k), v) for k, v in options.items()]) for role, options in asked]
    (tmp_path / "in.term").write_text(erlang_term(given) + ".\n")
    paths = (HERE / "ssl_options.erlscript", tmp_path / "in.term", tmp_path / "out")
    script, source, sink = (erlang_string(str(path)) for path in paths)
    with socket.socket() as nobody:  # bound, and never listening: nobody else comes to listen there either
        nobody.bind(("127.0.0.1", *free_ports(1)))
        port = nobody.getsockname()[1]
        run = f"file:script({script}, [{{'In', {source}}}, {{'Out', {sink}}}, {{'Port', {port}}}])"
        done = subprocess.run(
            [otp.erl, "-noinput", "-kernel", "logger_level", "none", "-eval", f"{{ok, _}} = {run}, halt()."],
            env={"PATH": os.defpath, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    answers = (tmp_path / "out").read_text().split()
    assert len(answers) == len(asked)
    wrong = []
    for (role, options), answer in zip(asked, answers, strict=True):
        beside = {"verify": Symbol("verify_peer")}
        if role is Role.SERVER:
            beside["fail_if_no_peer_cert"] = True
        foretold = bool(list(refused(role, {**beside, **options}, otp.release)))
        other_reasons = answer == "refused" and not NEEDS_MORE.isdisjoint(options)
        if foretold != (answer == "refused") and not other_reasons:
            wrong.append(f"{role} {options}: {answer}")
    assert not wrong, "\n".join(wrong)
