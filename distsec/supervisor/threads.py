"""Work in threads: that it is not left behind by whoever is cancelled while it waits, and that there are
threads for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


START_SECONDS = 30.0


def thread_pool() -> ThreadPoolExecutor:
    """As many threads as asyncio would make one after the other, all of them there from the beginning: where
    the process table is full later on, supervising asks for none."""
    workers = min(32, (os.cpu_count() or 1) + 4)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="distsec")
    all_there = Barrier(workers + 1, timeout=START_SECONDS)
    try:
        for _ in range(workers):
            pool.submit(all_there.wait)  # each holds one, so that the next takes another
        all_there.wait()
    except (RuntimeError, BrokenBarrierError):  # with fewer, then
        with contextlib.suppress(BrokenBarrierError):
            all_there.abort()
    return pool


async def to_its_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As asyncio.to_thread, but a cancellation is raised only after `function` has ended: what it writes is
    never written later than whatever its caller has locked.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # nobody else asks for it
        raise
