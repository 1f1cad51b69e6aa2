"""Status documents as the orchestrator sends them."""

from __future__ import annotations

import time
from typing import Any

from tests.unit.control.fake_orchestrator import NODES

DAY = 86400


def link(peer: str, **changes: Any) -> dict[str, Any]:
    now = int(time.time())
    return {
        "peer": peer,
        "address": "127.0.0.1:40112",
        "identity": f"spiffe://demo/node/127.0.0.1/{peer.partition('@')[0]}",
        "issuer": "CN=demo",
        "serial": "0a1b",
        "not_after": now + 364 * DAY + 60,
        "direction": "in",
        "hidden": False,
        "tls_version": "tlsv1.3",
        "cipher": "TLS_AES_256_GCM_SHA384",
        "since": now - 7500,
        "verdict": "allow",
        "reason": None,
        **changes,
    }


def node(name: str, /, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "RUNNING",
        "reason": None,
        "detail": None,
        "guard": "proven",
        "pid": 4711,
        "user": "root",
        "otp": "27",
        "support": "proven",
        "uptime_seconds": 7530,
        "agent": "connected",
        "policy_generation": 7,
        "tainted": False,
        "certificate": {
            "identity": "spiffe://demo/node/127.0.0.1/x",
            "serial": "0b",
            "issuer": "CN=demo",
            "not_after": int(time.time()) + 300 * DAY + 60,
        },
        "links": [link(peer) for peer in NODES if peer != name],
        **changes,
    }


def status(**changes: Any) -> dict[str, Any]:
    """All well; `changes` at the top."""
    return {
        "schema": 1,
        "cluster": "demo",
        "mode": "production",
        "carrier": "inet_tls",
        "healthy": True,
        "violation": False,
        "policy_generation": 7,
        "nodes": [node(name) for name in NODES],
        "refusals": [],
        **changes,
    }


def with_first(**changes: Any) -> dict[str, Any]:
    """All well but for the first node."""
    return status(nodes=[node(NODES[0], **changes), *(node(name) for name in NODES[1:])])
