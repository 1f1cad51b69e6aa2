"""What holds where the configuration does not say. Pure."""

from __future__ import annotations

import os.path
from pathlib import PurePath

from distsec.config.schema import Cluster, Document, Node

CLUSTER_NAME = "distsec"
STATE_DIR = "state"
METRICS_LISTEN = ("127.0.0.1", 9911)


def cluster_name(document: Document) -> str:
    return (document.cluster or Cluster()).name or CLUSTER_NAME


def state_dir(document: Document, directory: str) -> str:
    """The absolute path of the state directory, of a configuration file that is in `directory`."""
    return absolute((document.cluster or Cluster()).state_dir or STATE_DIR, directory)


def absolute(path: str, directory: str) -> str:
    """`path` seen from `directory`, without `.` and `..`; symlinks are left as they are."""
    return os.path.normpath(PurePath(directory) / path)


def listens_on(node: Node) -> str:
    """Where a node's distribution listens: as given, else the IP address in its name, else loopback."""
    return node.address or (node.name.ip if node.name else None) or "127.0.0.1"


def metrics_listen(document: Document) -> tuple[str, int] | None:
    """Where the metrics are served, None for nowhere (or for a value that was complained about)."""
    if document.metrics is None or not document.metrics.has("listen"):
        return METRICS_LISTEN
    listen = document.metrics.listen
    return listen if isinstance(listen, tuple) else None
