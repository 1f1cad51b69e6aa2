"""What the VM of an operator's shell is given: its files and its command line (pure).

The VM is guarded like a node (`guard.term` with `kind => shell`): our carrier and resolver, the optfile that
we wrote, a policy that knows the one node it is for, and no listener. That policy is signed with a key that
is made for it and forgotten: signed with the cluster's it would be a policy that a node could be given.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distsec.beam import render
from distsec.beam.erlang_text import Symbol, Term, erlang_term
from distsec.model.cluster import Carrier
from distsec.model.names import NodeName
from distsec.model.policy import Phase, Policy, PolicyPeer
from distsec.model.secret import Secret

DIRECTORY: Final = "shells"
"""Where the private directories of shells are, relative to the state directory."""

RECORD: Final = "shell.json"


@dataclass(frozen=True, slots=True)
class ShellFields:
    """A shell to be. `directory` is its own and absolute, `ebin` the agent's; `target` is the node's entry of
    the policy, with the address and port at which it is dialled.
    """

    cluster: str
    name: NodeName
    target: PolicyPeer
    carrier: Carrier
    directory: str
    ebin: str
    erl: str


def shell_policy(wanted: Policy, target: PolicyPeer, others: Sequence[PolicyPeer] = ()) -> Policy:
    """The policy of a shell: of the `wanted` one that node alone, and whatever is refused in the cluster. A
    tool's has `others` too.
    """
    peers = tuple(replace(peer, phase=Phase.OPEN) for peer in (target, *others))
    return replace(wanted, peers=peers, rules=(), epochs=(), connect="none")


def shell_files(
    fields: ShellFields,
    policy: Policy,
    *,
    cookie: Secret,
    key: Secret | None,
    certificate: bytes | None,
    trust: bytes | None,
) -> dict[str, bytes]:
    """File name → content. `key`, `certificate` and `trust` (PEM) are None where the carrier has no TLS.

    `cookie` is the node's default one, in the file where an Erlang VM without flags for it looks for its own
    (`auth:init_cookie/0`; HOME is the shell's directory), since one that does not listen is not asked for a
    port, which is when nodes set theirs. Raises ConfigError for what cannot be rendered.
    """
    signer = Ed25519PrivateKey.generate()
    files, optfile = tls_files(fields, key=key, certificate=certificate, trust=trust)
    return files | {
        ".erlang.cookie": cookie.reveal(),
        "policy.term": render.policy_document(policy, signer.sign),
        "guard.term": guard_file(fields, "shell", signer.public_key().public_bytes_raw(), optfile),
    }


def tls_files(
    fields: ShellFields, *, key: Secret | None, certificate: bytes | None, trust: bytes | None
) -> tuple[dict[str, bytes], bytes | None]:
    """The files of TLS, and of these the optfile; none where the carrier has no TLS."""
    if not fields.carrier.encrypted:
        return {}, None
    assert key is not None and certificate is not None and trust is not None
    optfile = render.optfile(directory=fields.directory)
    files = {
        render.KEY: key.reveal(),
        render.CERTIFICATE: certificate,
        render.TRUST: trust,
        render.OPTFILE: optfile,
    }
    return files, optfile


def guard_file(fields: ShellFields, kind: str, policy_key: bytes, optfile: bytes | None) -> bytes:
    """`guard.term` of a VM that only dials; `kind` is "shell" or "tool"."""
    guard: dict[Symbol | bytes, Term] = {
        Symbol("version"): 1,
        Symbol("kind"): Symbol(kind),
        Symbol("node"): str(fields.name).encode(),
        Symbol("target"): fields.target.name.encode(),
        Symbol("cluster"): fields.cluster.encode(),
        Symbol("proto_dist"): render.proto_dist(fields.carrier, _address(fields)),
        Symbol("optfile"): None if optfile is None else f"{fields.directory}/{render.OPTFILE}".encode(),
        Symbol("optfile_sha256"): None if optfile is None else hashlib.sha256(optfile).hexdigest().encode(),
        Symbol("interface"): render.interface_term(fields.carrier, _address(fields)),
        Symbol("policy_key"): base64.b64encode(policy_key),
    }
    comment = f"% What must hold in this {kind}'s VM. Written by distsec."
    return f"{comment}\n{{distsec_guard, {erlang_term(guard)}}}.\n".encode("ascii")


def shell_words(fields: ShellFields) -> list[str]:
    """The command that becomes the shell's VM, without what depends on its use (control.attach). No word of
    it is secret.
    """
    words = [fields.erl, "-boot", "no_dot_erlang", "-distsec_dir", fields.directory]
    words += ["-mode", "interactive", "-pa", fields.ebin]
    words += ["-name" if fields.name.long else "-sname", str(fields.name), "-hidden", "-dist_listen", "false"]
    words += dialling_words(fields)
    words += ["-kernel", "logger_level", "critical"]  # whatever goes wrong distsec_shell says in a line
    # A few threads do for one link.
    return [*words, "+S", "2:2", "+SDio", "1", "+sbwt", "none", "+pc", "unicode"]


def dialling_words(fields: ShellFields) -> list[str]:
    """The flags that put our carrier and resolver into a VM that only dials."""
    words = ["-proto_dist", render.proto_dist(fields.carrier, _address(fields))]
    if fields.carrier.encrypted:
        words += ["-ssl_dist_optfile", f"{fields.directory}/{render.OPTFILE}"]
    words += ["-epmd_module", "distsec_epmd", "-start_epmd", "false", "-no_epmd", "false"]
    words += ["-kernel", "inet_dist_use_interface"]
    return [*words, erlang_term(render.interface_term(fields.carrier, _address(fields)))]


def _address(fields: ShellFields) -> str:
    assert fields.target.address is not None, "who dials knows where"
    return fields.target.address
