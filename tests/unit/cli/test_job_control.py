"""Who has the terminal, and when: every turn of it, told and answered."""

from __future__ import annotations

import signal

import pytest

from distsec.cli.job_control import Act, Job, Pass, Stop, begins_in_front

FRONT = [Act.RAW, Act.FRONT]
BEHIND = [Act.BEHIND, Act.RESIZE]
ASKS = [signal.SIGTTIN, signal.SIGTTOU]


@pytest.mark.parametrize(
    ("reads_terminal", "in_pipeline", "here", "front"),
    [
        (True, False, True, True),
        (True, False, False, False),
        (True, True, True, False),
        (False, False, True, False),
    ],
)
def test_it_begins_in_front_where_nobody_else_may_want_the_terminal(
    reads_terminal: bool, in_pipeline: bool, here: bool, front: bool
) -> None:
    assert begins_in_front(reads_terminal=reads_terminal, in_pipeline=in_pipeline, here=here) is front
    assert Job(front=front).begun() == ([Act.RAW] if front else [])


@pytest.mark.parametrize("number", ASKS)
def test_one_that_asks_for_the_terminal_gets_it_where_we_have_it(number: int) -> None:
    job = Job(front=False)
    assert job.stopped(number, here=True) == FRONT
    assert job.front


@pytest.mark.parametrize("number", ASKS)
def test_where_we_do_not_have_it_we_stop_with_it_and_it_gets_it_when_we_do(number: int) -> None:
    job = Job(front=False)
    assert job.stopped(number, here=False) == [Act.RESTORE, Stop(number)]
    assert job.resumed(number, here=True, was_stopped=True) == [*FRONT, Act.RESIZE]


def test_one_that_is_stopped_has_the_terminal_again_when_it_goes_on_in_front() -> None:
    job = Job(front=True)
    assert job.stopped(signal.SIGTSTP, here=True) == [Act.RESTORE, Stop(signal.SIGTSTP)]
    assert job.resumed(signal.SIGTSTP, here=True, was_stopped=True) == [*FRONT, Act.RESIZE]


def test_one_that_goes_on_behind_is_behind_until_it_asks() -> None:
    job = Job(front=True)
    job.stopped(signal.SIGTSTP, here=True)
    assert job.resumed(signal.SIGTSTP, here=False, was_stopped=True) == BEHIND
    assert not job.front
    assert job.stopped(signal.SIGTTIN, here=True) == FRONT


def test_in_a_pipeline_one_that_is_continued_stays_behind() -> None:
    job = Job(front=False)
    job.stopped(signal.SIGTSTP, here=True)
    assert job.resumed(signal.SIGTSTP, here=True, was_stopped=True) == BEHIND


def test_where_nobody_could_continue_us_it_goes_on_at_once_but_after_sigstop() -> None:
    job = Job(front=True)
    assert job.resumed(signal.SIGTSTP, here=True, was_stopped=False) == [*FRONT, Act.RESIZE]
    assert job.resumed(signal.SIGSTOP, here=True, was_stopped=False) == [Act.RAW]
    assert Job(front=False).resumed(signal.SIGSTOP, here=True, was_stopped=False) == []


@pytest.mark.parametrize("number", ASKS)
def test_one_that_can_never_have_the_terminal_is_hung_up_on_and_does_not_ask_for_ever(number: int) -> None:
    job = Job(front=False)
    assert job.resumed(number, here=False, was_stopped=False) == [Act.HANG_UP, Act.BEHIND]


def test_who_was_continued_after_somebody_stopped_us_alone_looks_where_it_is() -> None:
    job = Job(front=True)
    assert job.signalled(signal.SIGCONT, here=True) == [Act.RAW, Act.RESIZE, Pass(signal.SIGCONT)]
    assert job.signalled(signal.SIGCONT, here=False) == BEHIND
    assert job.signalled(signal.SIGCONT, here=False) == [Pass(signal.SIGCONT)]


def test_a_new_size_is_told_once() -> None:
    assert Job(front=True).signalled(signal.SIGWINCH, here=True) == [Act.RESIZE]
    assert Job(front=False).signalled(signal.SIGWINCH, here=True) == [Act.RESIZE, Pass(signal.SIGWINCH)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGHUP])
@pytest.mark.parametrize("front", [True, False])
def test_all_else_that_we_are_sent_is_for_it(number: int, front: bool) -> None:
    assert Job(front=front).signalled(number, here=True) == [Pass(number)]


def test_a_line_that_waits_is_for_it_unless_the_terminal_is_somebody_elses() -> None:
    job = Job(front=False)
    assert job.line_waits(here=False) == []
    assert not job.front
    assert job.line_waits(here=True) == FRONT
    assert job.line_waits(here=True) == [], "it has it"
