"""Fixtures of the faults: whole clusters, as in the system tests."""

from __future__ import annotations

from tests.system.conftest import beams, make_cluster

__all__ = ["beams", "make_cluster"]
