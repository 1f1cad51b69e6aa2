"""Deadlines that come when a test wants them to, and not because the machine is busy."""

from __future__ import annotations

import asyncio

import pytest


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on the clock of the running loop is so much further: what is due by then is due at once."""
    loop = asyncio.get_running_loop()
    before = loop.time
    monkeypatch.setattr(loop, "time", lambda: before() + seconds)
