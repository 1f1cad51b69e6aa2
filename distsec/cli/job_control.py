"""Who has the terminal while a tool runs on one of its own (`cli.relay`): the operator's shell, or the tool.
Pure: told what happened it says what is to be done, in order.

The tool is in front, then each key reaches it, and its own terminal makes of ^C and ^Z what they mean. Or it
is behind, as it begins in a pipeline or with `&`: then the operator's terminal is left to whoever reads it
there, and the kernel stops the tool (SIGTTIN, SIGTTOU) when it asks for the one that it has. Where we are in
front ourselves it then comes to the front; else we stop with it, as the shell that waits for us expects.

`here`: whether our process group is the one in front at the operator's terminal.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum

_WANTS_TERMINAL = (signal.SIGTTIN, signal.SIGTTOU)


class Act(StrEnum):
    RAW = "raw"
    """The operator's terminal passes on every key, and keeps for later how it was set."""
    RESTORE = "restore"
    """It is set as it was before."""
    RESIZE = "resize"
    """The tool's terminal gets the size of the operator's."""
    FRONT = "front"
    """The tool is in front at its own terminal, and goes on."""
    BEHIND = "behind"
    """It is not, and goes on."""
    HANG_UP = "hang up"
    """Its terminal is gone."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The tool and what it has started get this signal."""

    number: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Our process group stops with this signal; `resumed` is told what came of it."""

    number: int


Deed = Act | Pass | Stop


class Job:
    """`front`: whether the tool is in front, which it begins with or not."""

    def __init__(self, *, front: bool) -> None:
        self.front = front

    def begun(self) -> list[Deed]:
        return [Act.RAW] if self.front else []

    def stopped(self, number: int, *, here: bool) -> list[Deed]:
        """The tool was stopped by that signal."""
        if number in _WANTS_TERMINAL and here:
            return self._to_front()
        return [Act.RESTORE, Stop(number)]

    def resumed(self, number: int, *, here: bool, was_stopped: bool) -> list[Deed]:
        """We go on after Stop(number). Without `was_stopped` the kernel did not stop us: nobody waits who
        could continue us (an orphaned process group). Then nor does it the tool, but for SIGSTOP.
        """
        if number == signal.SIGSTOP and not was_stopped:
            return [Act.RAW] if self.front and here else []
        if here and (self.front or number in _WANTS_TERMINAL):
            return [*self._to_front(), Act.RESIZE]
        if number in _WANTS_TERMINAL and not was_stopped:
            return [Act.HANG_UP, Act.BEHIND]  # it would ask again at once, and nobody can ever give it
        self.front = False
        return [Act.BEHIND, Act.RESIZE]

    def signalled(self, number: int, *, here: bool) -> list[Deed]:
        """We were sent that signal."""
        match number:
            case signal.SIGCONT if self.front and here:  # somebody had stopped us alone
                return [Act.RAW, Act.RESIZE, Pass(number)]
            case signal.SIGCONT if self.front:
                self.front = False
                return [Act.BEHIND, Act.RESIZE]
            case signal.SIGWINCH if self.front:  # its own terminal tells it
                return [Act.RESIZE]
            case signal.SIGWINCH:
                return [Act.RESIZE, Pass(number)]
            case _:
                return [Pass(number)]

    def line_waits(self, *, here: bool) -> list[Deed]:
        """There is a whole line to be read at the operator's terminal, the tool's standard input, and
        the tool is behind. No pager has taken the terminal, or there were no lines: it is for the tool, which
        may wait for it without reading (poll), so that the kernel does not stop it.
        """
        return self._to_front() if here and not self.front else []

    def _to_front(self) -> list[Deed]:
        self.front = True
        return [Act.RAW, Act.FRONT]


def begins_in_front(*, reads_terminal: bool, in_pipeline: bool, here: bool) -> bool:
    """`reads_terminal`: its standard input is the terminal; `in_pipeline`: what it prints goes to another
    program, which may be one that reads the terminal itself (`| less`).
    """
    return reads_terminal and not in_pipeline and here
