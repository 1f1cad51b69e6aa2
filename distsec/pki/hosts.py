"""What is kept of other hosts, and the cookies of pairs whose ends are on two hosts.

Each host has an X25519 key. Its public half is in the document that the host exports; the cookie of a pair
follows from the secret that two hosts have in common by it (RFC 7748), so nothing secret is ever carried
around, and no third host knows the cookie. Nodes never see the key.

`hosts.json` is written by `distsec import` alone, in one step.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from distsec.errors import StoreError
from distsec.model.hosts import HostNode, HostSpec, check_host_name
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.pki.authority import key_pem_of, load_key
from distsec.pki.store import Store

KEY_FILE = "ca/host.key"
HOSTS_FILE = "hosts.json"
SERIAL_FILE = "ca/host.serial"
SCHEMA = 1
MAX_HOSTS = 1000
COOKIE_BYTES = 32

_KEY = re.compile(r"[0-9a-f]{64}")


def create_host_key(store: Store) -> HostKey:
    """Makes the key unless there is one, and loads it. Raises StoreError."""
    if not store.exists(KEY_FILE):
        store.create(KEY_FILE, key_pem_of(X25519PrivateKey.generate()).reveal())
    return load_host_key(store)


def load_host_key(store: Store) -> HostKey:
    """Raises StoreError if it is missing or of another kind."""
    key = load_key(store, KEY_FILE)
    if not isinstance(key, X25519PrivateKey):
        raise StoreError("is no X25519 key", where=str(store.path(KEY_FILE)), do="restore it from a backup")
    return HostKey(key)


@dataclass(frozen=True, slots=True)
class HostKey:
    """Of this host."""

    _key: X25519PrivateKey

    @property
    def public_raw(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def shared_with(self, public_raw: bytes) -> Secret:
        """What this host and the one with that public key have in common. Raises ValueError for a point
        that has nothing in common with anybody (RFC 7748, section 6.1).
        """
        return Secret(self._key.exchange(X25519PublicKey.from_public_bytes(public_raw)))

    def pair_cookie(self, host: HostSpec, own: str, other: str, epochs: Mapping[str, int]) -> Secret:
        """Of our node `own` with `other` at `host`, the same from either side; `epochs` is our own count.

        Both hosts' counts of both nodes go into it: whichever of them says that a node was re-keyed, the
        cookies of before are worth nothing, until the other host has heard of it too.
        """
        counted = {
            own: (epochs.get(own, 0), host.epoch(own)),
            other: (host.epoch(other), epochs.get(other, 0)),
        }
        first, second = sorted(counted, key=str.encode)
        theirs = bytes.fromhex(host.agreement_key)
        info = b"distsec cookie hosts 1\0" + b"\0".join(
            [
                *(b"%s\0%d\0%d" % (name.encode(), *counted[name]) for name in (first, second)),
                *sorted((self.public_raw, theirs)),
            ]
        )
        derived = HKDF(algorithm=hashes.SHA256(), length=COOKIE_BYTES, salt=None, info=info).derive(
            self.shared_with(theirs).reveal()
        )
        # A letter first, as every cookie has: a leading `-` would be taken for a flag.
        return Secret(b"h" + derived.hex().encode())


# ---- what was imported -------------------------------------------------------------------------------------


def load_hosts(store: Store) -> tuple[HostSpec, ...]:
    """The hosts that were imported, by name. Raises StoreError for a file that cannot be understood."""
    if not store.exists(HOSTS_FILE):
        return ()
    try:
        document = json.loads(store.read(HOSTS_FILE))
        if set(document) != {"schema", "hosts"} or document["schema"] != SCHEMA:
            raise ValueError("schema")
        if not isinstance(document["hosts"], list) or len(document["hosts"]) > MAX_HOSTS:
            raise ValueError("hosts")
        return tuple(map(_host, document["hosts"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise StoreError(
            "is damaged, so nobody can tell where the nodes of other hosts are",
            where=str(store.path(HOSTS_FILE)),
            do="restore it from a backup, or remove it and import these hosts again",
        ) from None


def save_hosts(store: Store, hosts: tuple[HostSpec, ...]) -> None:
    """In one step; when this returns it survives a power cut. Raises StoreError."""
    rows = [
        {
            **asdict(host),
            "nodes": [{**asdict(node), "name": str(node.name)} for node in host.nodes],
            "epochs": dict(host.epochs),
        }
        for host in sorted(hosts, key=lambda each: each.name)
    ]
    store.write(HOSTS_FILE, json.dumps({"schema": SCHEMA, "hosts": rows}, indent=1).encode() + b"\n")


def next_serial(store: Store, now: float) -> int:
    """For a document of this host: above every one so far, also where the clock was set back or an old state
    directory was put back. Raises StoreError.
    """
    last = 0
    if store.exists(SERIAL_FILE):
        try:
            last = int(store.read(SERIAL_FILE))
        except ValueError:
            last = 0  # by the clock then: whoever has a newer one says so
    serial = max(last + 1, int(now))
    store.write(SERIAL_FILE, b"%d\n" % serial)
    return serial


def _host(fields: Any) -> HostSpec:
    if set(fields) != {each.name for each in dataclasses.fields(HostSpec)}:
        raise ValueError("unknown keys")
    for key in ("signing_key", "agreement_key", "digest"):
        _hex(fields[key])
    return HostSpec(
        name=check_host_name(fields["name"]),
        signing_key=fields["signing_key"],
        agreement_key=fields["agreement_key"],
        serial=_number(fields["serial"]),
        issued_at=_number(fields["issued_at"]),
        digest=fields["digest"],
        nodes=tuple(map(_node, fields["nodes"])),
        epochs=tuple(sorted((str(NodeName.parse(n)), _number(c)) for n, c in fields["epochs"].items())),
        trusts=tuple(map(_hex, fields["trusts"])),
    )


def _node(fields: Any) -> HostNode:
    if set(fields) != {"name", "address", "port", "anchor"} or not isinstance(fields["address"], str):
        raise ValueError("node")
    return HostNode(
        NodeName.parse(fields["name"]), fields["address"], _number(fields["port"]), _hex(fields["anchor"])
    )


def _hex(value: Any) -> str:
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise ValueError("not 32 bytes in hex")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("number")
    return value
