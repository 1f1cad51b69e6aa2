"""What the VM of an application's tool is given (`distsec exec`): its files and its flags (pure).

Unlike a shell's (`beam.shell`) its command line is not ours: the flags come by ERL_AFLAGS, into whatever VM
the command starts, and take effect where that becomes a node. It is guarded like one (`guard.term` with
`kind => tool`): our carrier and resolver, no listener, and a policy that knows the nodes it is for. It calls
itself what it likes; those nodes know it by its certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distsec.beam import aflags, render
from distsec.beam.shell import ShellFields, dialling_words, guard_file, tls_files
from distsec.errors import CommandFailed
from distsec.model.cookies import Cookies, CookieSet
from distsec.model.policy import Policy
from distsec.model.secret import Secret

MAX_ENVIRONMENT_BYTES = 131_072 - len("ERL_AFLAGS=\0")


def tool_files(
    fields: ShellFields,
    policy: Policy,
    *,
    cookies: Mapping[str, Secret],
    key: Secret | None,
    certificate: bytes | None,
    trust: bytes | None,
) -> dict[str, bytes]:
    """File name → content. `cookies`: of each node that it may dial, that one's default; the first is the one
    it is for. `policy` knows just these nodes. The rest as `beam.shell.shell_files` has it.
    """
    signer = Ed25519PrivateKey.generate()
    files, optfile = tls_files(fields, key=key, certificate=certificate, trust=trust)
    default = cookies[fields.target.name]
    return files | {
        "cookie.term": render.cookie_file(CookieSet(0, Cookies(default, cookies))),
        "policy.term": render.policy_document(policy, signer.sign),
        "guard.term": guard_file(fields, "tool", signer.public_key().public_bytes_raw(), optfile),
    }


def tool_flags(fields: ShellFields, libraries: Sequence[str] = ()) -> str:
    """The value of ERL_AFLAGS. No word of it is secret. `libraries`: as `aflags.FlagFields` has them."""
    words = ["-distsec_dir", fields.directory, "-mode", "interactive", "-pa", fields.ebin]
    if libraries:
        words += ["-pz", *libraries]
    words += ["-dist_listen", "false", *dialling_words(fields), "-nocookie"]
    flags = " ".join(map(aflags.escape_for_erlexec, words))
    if len(flags.encode()) > MAX_ENVIRONMENT_BYTES:
        raise CommandFailed("ERL_AFLAGS would be longer than an environment variable may be")
    return flags
