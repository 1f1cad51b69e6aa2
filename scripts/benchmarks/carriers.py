"""The carriers that are compared, each as nodes that measure: plain, TLS as OTP documents it, distsec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from distsec.beam.aflags import flag_words
from distsec.beam.erlang_text import Symbol, Term, erlang_atom, erlang_term
from distsec.beam.tls_options import Role, tls_options
from distsec.model.cluster import Carrier
from distsec.model.names import NodeName
from scripts.benchmarks.clusters import configuration, orchestrator
from scripts.benchmarks.nodes import HOST, Control, Release, command, start_bare

_DOCUMENTED: Mapping[str, Term] = {"verify": Symbol("verify_peer"), "secure_renegotiate": True}
"""OTP's "Using TLS for Erlang Distribution" with both sides verified; the version is ssl's own choice: 1.2 on
25 and 27 (inet_tls_dist:dist_defaults/1)."""

_DOCUMENTED_1_3: Mapping[str, Term] = {"verify": Symbol("verify_peer"), "versions": [Symbol("tlsv1.3")]}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the nodes of one measurement are, and what starts them."""

    directory: Path
    release: Release
    beams: Path
    names: Sequence[str]
    alone: bool
    """Whether nodes link only where a measurement says so (nodes.command)."""

    def commands(self, carrier: str) -> dict[str, list[str]]:
        """`carrier` makes the control sockets' paths unique."""
        return {
            name: command(self.release, self.beams, self.directory / f"{carrier}{number}", alone=self.alone)
            for number, name in enumerate(self.names)
        }

    def node_directory(self, name: str) -> Path:
        """Of distsec's node of that name, whose key and certificate all carriers with TLS use."""
        return self.directory / "state" / "nodes" / name


def start_distsec(stack: ExitStack, place: Place) -> list[Control]:
    """The nodes under `distsec run`, as an operator would run them."""
    commands = place.commands("d")
    process, _ = stack.enter_context(orchestrator(place.directory, configuration(commands, connect="none")))
    controls = [Control(name, Path(words[-1])) for name, words in commands.items()]
    for control in controls:
        stack.callback(control.close)
        control.connect(process)
    return controls


def start_plain(stack: ExitStack, place: Place) -> list[Control]:
    """Erlang distribution without TLS."""
    flags: dict[str, Sequence[str]] = dict.fromkeys(place.names, ())
    return start_bare(stack, place.commands("p"), flags)


def start_documented(stack: ExitStack, place: Place, *, newest_tls: bool = False) -> list[Control]:
    """TLS as OTP documents it, with mutual verification; `newest_tls` asks for TLS 1.3 and nothing else."""
    flags = {}
    for name in place.names:
        both = {**_files(place.node_directory(name)), **(_DOCUMENTED_1_3 if newest_tls else _DOCUMENTED)}
        options = {Role.SERVER: {**both, "fail_if_no_peer_cert": True}, Role.CLIENT: both}
        flags[name] = _tls_flags(place.directory / f"{name}.documented{newest_tls:d}", options)
    return start_bare(stack, place.commands("n" if newest_tls else "o"), flags)


def start_same_options(stack: ExitStack, place: Place) -> list[Control]:
    """A bare script with distsec's own TLS and socket options, and nothing else of it."""
    flags = {}
    for name in place.names:
        options = {role: tls_options(role, **_files(place.node_directory(name))) for role in Role}
        for role in Role:
            del options[role]["verify_fun"]
        flags[name] = [*_tls_flags(place.directory / f"{name}.same", options), *_socket_flags(name)]
    return start_bare(stack, place.commands("s"), flags)


def _files(directory: Path) -> dict[str, bytes]:
    files = {"certfile": "certificate.pem", "keyfile": "key.pem", "cacertfile": "trust.pem"}
    return {option: bytes(directory / file) for option, file in files.items()}


def _tls_flags(file: Path, options: Mapping[Role, Mapping[str, Term]]) -> list[str]:
    roles = []
    for role, of in options.items():
        written = ",".join(f"{{{erlang_atom(key)},{erlang_term(value)}}}" for key, value in of.items())
        roles.append(f"{{{role},[{written}]}}")
    file.write_text(f"[{','.join(roles)}].\n")
    return ["-proto_dist", Carrier.INET_TLS.value, "-ssl_dist_optfile", str(file)]


def _socket_flags(name: str) -> list[str]:
    """Distsec's own options of the distribution sockets, as it hands them to the emulator."""
    words = flag_words(
        node=NodeName.parse(name), carrier=Carrier.DISTSEC, directory="/", ebin="/", address=HOST, port=1
    )
    options = words[words.index("inet_dist_listen_options") :]
    return ["-kernel", *options[:4]]
