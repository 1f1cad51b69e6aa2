"""The document that a host exports about itself: its form, its signatures, and who speaks for whom. Pure.

It holds no secret. Two kinds of signature are under it: one by the host's own key (Ed25519, the one that
signs its policies), which makes it the next document of the same host, and one by the key of *every node that
it names*, with that node's certificate beside it. So nobody can say where a node is, or which cookies it has,
without its key: a node that was broken into speaks for itself alone.

What is signed is the JSON of `export` with sorted keys and without spaces, after a line that nothing else
begins with (docs/hosts.md has the form).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from distsec.config.addresses import AddressInvalid, parse_address
from distsec.errors import ImportRefused, NameInvalid
from distsec.model.hosts import check_host_name
from distsec.model.names import NodeName, check_trust_domain
from distsec.model.secret import Secret
from distsec.pki.acceptance import MAX_CHAIN, certificates_in
from distsec.pki.authority import pem_of

KIND = "distsec host"
SCHEMA = 1
MAX_BYTES = 4 * 1024 * 1024
MAX_NODES = 1000
MAX_AUTHORITIES = 4
MAX_EPOCHS = 4000
MAX_NUMBER = 2**53
"""Of serials, times and epochs: what every reader of JSON holds exactly."""

KEY_BYTES = 32
_SIGNED_WITH = b"distsec host document 1\0"
_EXPORT = frozenset(
    {
        "agreement_key",
        "authorities",
        "cluster",
        "epochs",
        "host",
        "issued_at",
        "nodes",
        "serial",
        "signing_key",
    }
)
_NODE = frozenset({"name", "address", "port", "identity", "certificate"})


@dataclass(frozen=True, slots=True)
class ExportedNode:
    """`chain`: its certificate, then the CAs between that and the anchor."""

    name: NodeName
    address: str
    port: int
    identity: str
    chain: tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class HostDocument:
    """What a host says of itself; times are Unix seconds, keys raw. See model.hosts.HostSpec."""

    cluster: str
    host: str
    serial: int
    issued_at: int
    signing_key: bytes
    agreement_key: bytes
    authorities: tuple[x509.Certificate, ...]
    nodes: tuple[ExportedNode, ...]
    epochs: tuple[tuple[str, int], ...]

    def message(self) -> bytes:
        """The bytes that are signed."""
        canonical = json.dumps(self._fields(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return _SIGNED_WITH + canonical.encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.message()).hexdigest()

    def written(self, host: bytes, nodes: Mapping[str, bytes]) -> bytes:
        """The file, with the signatures of the host and, by name, of each node."""
        signatures = {"host": _text(host), "nodes": {name: _text(each) for name, each in nodes.items()}}
        document = {"schema": SCHEMA, "kind": KIND, "export": self._fields(), "signatures": signatures}
        return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"

    def _fields(self) -> dict[str, Any]:
        return {
            "cluster": self.cluster,
            "host": self.host,
            "serial": self.serial,
            "issued_at": self.issued_at,
            "signing_key": _text(self.signing_key),
            "agreement_key": _text(self.agreement_key),
            "authorities": [pem_of(each).decode() for each in self.authorities],
            "nodes": [
                {
                    "name": str(node.name),
                    "address": node.address,
                    "port": node.port,
                    "identity": node.identity,
                    "certificate": b"".join(map(pem_of, node.chain)).decode(),
                }
                for node in self.nodes
            ],
            "epochs": dict(self.epochs),
        }


def sign_with(key_pem: Secret, message: bytes) -> bytes:
    """By a node's key, of whatever kind acceptance.judge_key takes. Raises ValueError for another."""
    key = serialization.load_pem_private_key(key_pem.reveal(), password=None)
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(message, ec.ECDSA(hashes.SHA256()))
        case ed25519.Ed25519PrivateKey():
            return key.sign(message)
        case rsa.RSAPrivateKey():
            return key.sign(message, _PSS, hashes.SHA256())
    raise ValueError("a key of a kind that signs nothing here")


def read_host_document(content: bytes, where: str) -> HostDocument:
    """The document in the file `where`, its signatures good. Nothing is said of whether its certificates are
    of a CA that is trusted, nor of how old it is. Raises ImportRefused.
    """

    def refused(what: str) -> ImportRefused:
        return ImportRefused(
            what, where=where, do="bring the file that `distsec export` wrote there, as it is"
        )

    if len(content) > MAX_BYTES:
        raise refused(f"is larger than {MAX_BYTES} bytes")
    try:
        whole = json.loads(content, object_pairs_hook=_each_once, parse_float=_no, parse_constant=_no)
        if not isinstance(whole, dict) or whole.get("kind") != KIND:
            raise refused("is no document of `distsec export`")
        if whole.get("schema") != SCHEMA:
            raise refused(f"is of another version (schema {str(whole.get('schema'))[:20]!a}, not {SCHEMA})")
        _keys(whole, {"schema", "kind", "export", "signatures"})
        document = _document(whole["export"])
        signatures = _keys(whole["signatures"], {"host", "nodes"})
        by_node = _keys(signatures["nodes"], {str(node.name) for node in document.nodes})
        host, nodes = _bytes(signatures["host"]), {name: _bytes(each) for name, each in by_node.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UnsupportedAlgorithm) as error:
        raise refused(f"cannot be understood ({_why(error)})") from None
    message = document.message()
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(document.signing_key).verify(host, message)
    except (InvalidSignature, ValueError):
        raise refused(f"was altered: it is not what {document.host} has signed") from None
    for node in document.nodes:
        if not _is_signed(node.chain[0], nodes[str(node.name)], message):
            raise refused(f"was altered, or does not speak for {node.name}: its key has not signed this")
    return document


def _document(fields: Any) -> HostDocument:
    _keys(fields, _EXPORT)
    nodes = tuple(map(_node, _list(fields["nodes"], MAX_NODES, 1)))
    for values in ([node.name for node in nodes], [(node.address, node.port) for node in nodes]):
        if len(set(values)) != len(values):
            raise ValueError("a node, or an address with its port, is in it twice")
    epochs = fields["epochs"]
    if not isinstance(epochs, dict) or len(epochs) > MAX_EPOCHS:
        raise ValueError("epochs")
    return HostDocument(
        cluster=check_trust_domain(_str(fields["cluster"])),
        host=check_host_name(_str(fields["host"])),
        serial=_number(fields["serial"]),
        issued_at=_number(fields["issued_at"]),
        signing_key=_key(fields["signing_key"]),
        agreement_key=_key(fields["agreement_key"]),
        authorities=tuple(_one(each) for each in _list(fields["authorities"], MAX_AUTHORITIES, 1)),
        nodes=nodes,
        epochs=tuple(sorted((str(NodeName.parse(name)), _number(epochs[name])) for name in epochs)),
    )


def _node(fields: Any) -> ExportedNode:
    _keys(fields, _NODE)
    address = _str(fields["address"])
    try:
        if parse_address(address) != address:
            raise ValueError("an address that is not in its shortest form")
    except AddressInvalid as error:
        raise ValueError(error.what) from None
    port = _number(fields["port"])
    if not 0 < port < 65_536:
        raise ValueError("port")
    chain = certificates_in(_str(fields["certificate"]).encode())
    if len(chain) > MAX_CHAIN:
        raise ValueError("a chain that is too long")
    return ExportedNode(NodeName.parse(_str(fields["name"])), address, port, _str(fields["identity"]), chain)


def _is_signed(leaf: x509.Certificate, signature: bytes, message: bytes) -> bool:
    try:
        match public := leaf.public_key():
            case ec.EllipticCurvePublicKey():
                public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            case ed25519.Ed25519PublicKey():
                public.verify(signature, message)
            case rsa.RSAPublicKey():
                public.verify(signature, message, _PSS, hashes.SHA256())
            case _:
                return False
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True


_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)


# ---- what JSON may hold


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is in it twice")
    return found


def _no(text: str) -> Any:
    raise ValueError("a number that is not whole")


def _keys(value: Any, wanted: frozenset[str] | set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != wanted:
        raise ValueError("keys that are missing, or unknown to this version")
    return value


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("something is no text")
    return value


def _list(value: Any, most: int, least: int) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise ValueError(f"a list that has not {least} to {most} entries")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise ValueError("a number that is out of range")
    return value


def _one(value: Any) -> x509.Certificate:
    (certificate,) = certificates_in(_str(value).encode())
    return certificate


def _bytes(value: Any) -> bytes:
    return base64.b64decode(_str(value), validate=True)


def _key(value: Any) -> bytes:
    key = _bytes(value)
    if len(key) != KEY_BYTES:
        raise ValueError("a key of another length")
    return key


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _why(error: Exception) -> str:
    """Without the text of somebody else: our own sentences, or the kind of what was found."""
    if isinstance(error, NameInvalid):
        return error.what
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | binascii.Error):
        return "it is no JSON" if not isinstance(error, binascii.Error) else "it is no base64"
    return str(error)[:200] if type(error) in (ValueError, TypeError) else type(error).__name__
