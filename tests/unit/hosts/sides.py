"""Two hosts of one cluster on one disk: state directories, without anything that runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distsec.beam.host_export import export
from distsec.beam.host_import import Plan, plan_import
from distsec.beam.hosts import with_hosts
from distsec.beam.imports import Brought, import_authority
from distsec.beam.offline import install_answer, take_requests
from distsec.beam.provision import provision
from distsec.config.load import parse
from distsec.errors import DistsecError
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.pki import hosts as kept
from distsec.pki import trust
from distsec.pki.authority import Authority
from distsec.pki.requests import read_requests
from distsec.pki.store import Store

NOW = 1_800_000_000.0
HERE = ("127.0.0.1", "192.0.2.1", "::1", "2001:db8::1")


@dataclass
class Side:
    """One host. `spec`: its configuration alone."""

    name: str
    store: Store
    spec: ClusterSpec

    def export(self, now: float = NOW, **how: str) -> bytes:
        return export(self.spec, self.store, how.pop("host", self.name), now, **how)[1]

    def plan(self, content: bytes, now: float = NOW, here: tuple[str, ...] | None = HERE) -> Plan:
        return plan_import(self.spec, self.store, content, "there.json", now, here)

    def take(self, content: bytes, now: float = NOW) -> Plan:
        plan = self.plan(content, now)
        kept.save_hosts(self.store, plan.hosts)
        return plan

    @property
    def whole(self) -> ClusterSpec:
        """The configuration with what was imported."""
        return with_hosts(self.spec, self.store)


def text_of(name: str, nodes: dict[str, str], more: str = "") -> str:
    tables = "".join(
        f'[[nodes]]\nname = "{node}"\naddress = "{address}"\nport = {9100 + index}\ncommand = ["erl"]\n'
        for index, (node, address) in enumerate(nodes.items())
    )
    allowed = ", ".join(f'"{node}"' for node in nodes)
    return (
        f'[cluster]\nname = "{name}"\n[metrics]\nlisten = false\n'
        f"[security.distribution]\nallowed_nodes = [{allowed}]\n{more}\n{tables}"
    )


Sides = Callable[..., Side]


@contextmanager
def sides() -> Iterator[Sides]:
    """`make("there", {"b@192.0.2.2": "192.0.2.2"}, ca=here)`: of the same CA as the side `ca`."""
    with tempfile.TemporaryDirectory(prefix="ds", dir="/tmp") as directory:

        def make(
            name: str,
            nodes: dict[str, str],
            ca: Side | None = None,
            cluster: str = "shop",
            more: str = "",
            root: str | None = None,
        ) -> Side:
            path = Path(directory) / (root or name)
            path.mkdir(exist_ok=True)
            spec = parse(text_of(cluster, nodes, more), path / "distsec.toml", {})
            store = Store(path / "state")
            if ca is None:
                provision(spec, store, NOW - 60)
            else:
                bundle = Brought(trust.trust_bundle(ca.store), "ca.pem")
                import_authority(spec, store, bundle, None, _none, NOW - 60)  # type: ignore[arg-type]
                provision(spec, store, NOW - 60, spoiled=_elsewhere)
                _signed(spec, store, ca)
            return Side(name, store, spec)

        yield make


def _signed(spec: ClusterSpec, store: Store, ca: Side) -> None:
    asked = take_requests(spec, store, [str(node.name) for node in spec.nodes])
    authority = Authority.load(ca.store)
    answer = b"".join(
        authority.certify_public(each.public, each.name, each.address, 30, NOW - 60)
        for each in read_requests(asked, spec.name, "ask.pem")
    )
    install_answer(spec, store, answer, "answer.pem", NOW)


def _elsewhere(node: NodeSpec, error: DistsecError) -> None:
    pass


def _none() -> None:
    raise AssertionError("nobody is asked")
