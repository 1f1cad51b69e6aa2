"""What goes on where the host has run out of something, or after an error that nobody foresaw."""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import Any

import pytest

from distsec.beam.shortage import shortage
from distsec.core.node_status import Why
from distsec.errors import GuardNotInForce, RuntimeMissing, StoreError
from distsec.supervisor import persistence, threads
from distsec.supervisor.boot import start_failed
from distsec.supervisor.persistence import carry_out, persistently


def raised(error: Exception, after: Exception) -> Exception:
    """`error` as it is raised from None while `after` is handled."""
    try:
        try:
            raise after
        except Exception:
            raise error from None
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EMFILE, "x"), "no file descriptor is left to this process"),
        (OSError(errno.ENFILE, "x"), "no file descriptor is left on this host"),
        (BlockingIOError(errno.EAGAIN, "x"), "no process or thread can be started"),
        (RuntimeError("can't start new thread"), "no process or thread can be started"),
        (OSError(errno.ENOMEM, "x"), "no memory is left"),
        (MemoryError(), "no memory is left"),
        (
            raised(StoreError("a file"), OSError(errno.EMFILE, "x")),
            "no file descriptor is left to this process",
        ),
    ],
)
def test_a_shortage_is_known_also_from_what_was_raised_because_of_it(error: Exception, says: str) -> None:
    assert says in str(shortage(error))
    failed = start_failed(error)
    assert (failed.lasting, failed.why) == (False, Why.START_FAILED)
    assert failed.text == shortage(error)


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (RuntimeMissing("no erl"), True),
        (StoreError("a file"), False),
        (OSError(errno.EACCES, "x"), False),
        (RuntimeError("another"), False),
    ],
)
def test_what_is_no_shortage_is_judged_by_what_it_is(error: Exception, lasting: bool) -> None:
    assert shortage(error) is None
    assert start_failed(error).lasting is lasting


def test_a_lock_that_somebody_has_is_none_and_its_own_error_is_told() -> None:
    error = raised(StoreError("another distsec is changing it"), BlockingIOError(errno.EAGAIN, "x"))
    assert shortage(error) is None
    assert "another distsec is changing it" in start_failed(error).text
    because = StoreError("it does not start")
    because.__cause__ = BlockingIOError(errno.EAGAIN, "fork")
    assert "no process or thread can be started" in str(shortage(because))


def test_a_guard_that_is_not_in_force_is_no_shortage_whatever_came_before() -> None:
    failed = start_failed(raised(GuardNotInForce("two flags"), OSError(errno.EMFILE, "x")))
    assert (failed.lasting, failed.why) == (True, Why.CARRIER_NOT_IN_FORCE)


class Notes:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, level: str, text: str, **fields: Any) -> None:
        self.lines.append((text, fields))


@pytest.mark.asyncio
async def test_a_task_that_fails_is_begun_anew_and_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "RETRY_SECONDS", 0.0)
    notes, tries = Notes(), 0

    async def run() -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise OSError(errno.EMFILE, "Too many open files")

    await asyncio.wait_for(persistently(run, "renewal", notes), 10)
    assert tries == 4
    ((text, fields),) = notes.lines
    assert (text, fields["task"]) == ("a task failed, and is begun anew", "renewal")
    assert "no file descriptor is left" in fields["error"]


@pytest.mark.asyncio
async def test_the_supervising_loop_is_not_begun_anew_after_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog is to see that it has ended."""
    monkeypatch.setattr(persistence, "RETRY_SECONDS", 0.0)
    errors = iter([OSError(errno.EMFILE, "x"), ZeroDivisionError("a bug"), AssertionError("not begun")])

    async def run() -> None:
        raise next(errors)

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(persistently(run, "housekeeping", Notes(), only_shortages=True), 10)


def test_what_cannot_be_done_keeps_nothing_else_from_being_done() -> None:
    done, notes = [], Notes()

    def perform(effect: int) -> None:
        if effect == 2:
            raise StoreError("cannot be removed")
        done.append(effect)

    carry_out([1, 2, 3], perform, notes, "a@h")
    assert done == [1, 3]
    assert [(text, fields["node"]) for text, fields in notes.lines] == [
        ("something was not done for a node", "a@h")
    ]


def test_the_threads_of_the_pool_are_there_before_any_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = threads.thread_pool()
    try:

        def none(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", none)
        together = threading.Barrier(pool._max_workers, timeout=30)
        assert sorted(
            each.result(30) for each in [pool.submit(together.wait) for _ in range(pool._max_workers)]
        ) == list(range(pool._max_workers))
    finally:
        pool.shutdown()


def test_a_pool_with_no_threads_is_one_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:

        def none(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patched.setattr(threading.Thread, "start", none)
        pool = threads.thread_pool()
    try:
        assert pool.submit(lambda: 7).result(30) == 7
    finally:
        pool.shutdown()
