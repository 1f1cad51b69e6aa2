"""What may be taken away of the state directory: certificates, bundles, lists, and on request one key."""

from __future__ import annotations

import os
from pathlib import Path

from distsec.beam import node_pairs, render
from distsec.errors import NotFound, StoreError
from distsec.model.cluster import ClusterSpec
from distsec.model.names import NodeName
from distsec.pki import crl, files, trust
from distsec.pki.issued import issued
from distsec.pki.store import Store


def certificate(store: Store, spec: ClusterSpec, name: str) -> bytes:
    """The certificate of `name` and its chain, in PEM: of a managed node, or the last that was issued to it
    here. Raises NameInvalid, NotFound, StoreError.
    """
    checked = NodeName.parse(name)
    node = spec.node(str(checked))
    if node is not None:
        return store.read(f"{node_pairs.directory_of(node)}/{render.CERTIFICATE}")
    found = [each.pem for each in issued(store, spec.name) if each.name == checked]
    if not found:
        raise NotFound(f"no certificate of {checked} is here", do="`distsec certs list` shows those that are")
    return found[-1]


def bundle(store: Store) -> bytes:
    """The CAs that the nodes trust now. Raises StoreError."""
    return trust.trust_bundle(store)


def lists(store: Store) -> bytes:
    """The signed lists of what is revoked. Raises NotFound, StoreError."""
    content = crl.lists_pem(store)
    if not content:
        raise NotFound(
            "there is no list of revoked certificates",
            where=str(store.path("ca")),
            do="one is made when a certificate is revoked, by an orchestrator that has the CA's key",
        )
    return content


def write_key(store: Store, spec: ClusterSpec, name: str, path: Path) -> None:
    """Writes the private key of the managed node `name` to the new file `path`, 0600 from the beginning.
    Raises NameInvalid, NotFound, StoreError.
    """
    node = spec.node(str(NodeName.parse(name)))
    if node is None:
        raise NotFound(f"{name} is not managed here, so its key is not here", do="leave --with-key out")
    key = store.read(f"{node_pairs.directory_of(node)}/{render.KEY}")
    try:
        directory = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            made = files.create_new(directory, path.name, key, 0o600)
        finally:
            os.close(directory)
    except OSError as error:
        reason = (os.strerror(error.errno) if error.errno else "unusable").lower()
        raise StoreError(f"cannot be written: {reason}", where=str(path), do="choose another file") from None
    if not made:
        raise StoreError(
            "is there already, and is not replaced by a key", where=str(path), do="choose another name"
        )
