"""Fixtures of the tests over several hosts."""

from __future__ import annotations

from tests.system.conftest import beams

__all__ = ["beams"]
