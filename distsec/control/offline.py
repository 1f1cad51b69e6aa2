"""What the state directory answers by itself, where no orchestrator runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distsec.beam.hosts import load_cluster
from distsec.control.wire import SCHEMA
from distsec.errors import NotFound
from distsec.pki.store import Store
from distsec.supervisor.machine import LocalMachine


def environment(config: Path, name: str) -> dict[str, Any]:
    """The document of `distsec env NODE --json`, as the orchestrator that runs this configuration would tell
    it. Raises DistsecError.
    """
    spec = load_cluster(config, os.environ)
    node = spec.node(name)
    if node is None:
        managed = ", ".join(str(each.name) for each in spec.nodes[:20]) or "none"
        raise NotFound(f"{name}: no such managed node", do=f"the managed nodes are: {managed}")
    machine = LocalMachine(spec, Store(Path(spec.state_dir)), os.environ)
    return {"schema": SCHEMA, **machine.outside(node)}
