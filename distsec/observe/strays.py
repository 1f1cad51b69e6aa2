"""What would otherwise reach stderr as it is, as lines of the log: of `logging` (aiohttp, asyncio), warnings,
and errors that nobody catches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from distsec.observe.log import Logger, log_line

STRAY_LINES = 20
"""Lines of libraries and of the interpreter within STRAY_SECONDS before the rest is only counted."""

STRAY_SECONDS = 10.0


class Strays(logging.Handler):
    """So many lines at a time: whoever talks to a port must not be able to fill the disk. `clock` is
    monotonic, in seconds.
    """

    def __init__(self, logger: Logger, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger
        self._clock = clock
        self._began = clock()
        self._lines = 0
        self._suppressed = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises."""
        try:
            text = record.getMessage()
        except Exception:  # arguments that do not fit, or cannot be shown
            text = str(record.msg)
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self.write(level, text, source=record.name, error=record.exc_info[1] if record.exc_info else None)

    def write(self, level: str, what: str, *, source: str, error: object = None) -> None:
        """A line, or one more that is only counted. For any thread."""
        with contextlib.suppress(Exception):  # nowhere left to tell
            if self._lines >= STRAY_LINES:
                self.flush()
            if self._lines >= STRAY_LINES:
                self._suppressed += 1
                return
            self._lines += 1
            fields: dict[str, Any] = {} if error is None else {"error": repr(error)}
            log_line(self._logger, level, "unexpected", source=source, what=what, **fields)

    def flush(self) -> None:
        """Ends the window, where its time is over, and says how many lines were held back."""
        if self._clock() - self._began < STRAY_SECONDS:
            return
        suppressed, self._suppressed = self._suppressed, 0
        self._began, self._lines = self._clock(), 0
        if suppressed:
            log_line(self._logger, "warning", "unexpected", what="more of the kind", suppressed=suppressed)

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Takes everything of this process as long as the block lasts."""
        root = logging.getLogger()
        handlers, level = root.handlers, root.level
        hooks = sys.unraisablehook, threading.excepthook
        root.handlers = [self]
        root.setLevel(logging.WARNING)
        logging.captureWarnings(True)
        sys.unraisablehook = lambda lost: self.write(
            "error", lost.err_msg or "an error that nobody could catch", source="python", error=lost.exc_value
        )
        threading.excepthook = lambda lost: self.write(
            "error", "a thread failed", source="python", error=lost.exc_value
        )
        try:
            yield
        finally:
            sys.unraisablehook, threading.excepthook = hooks
            logging.captureWarnings(False)
            root.handlers = handlers
            root.setLevel(level)

    def of_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception handler for `loop.set_exception_handler`."""
        self.write("error", str(context.get("message")), source="asyncio", error=context.get("exception"))

    def of_bus(self, subscriber: str, failures: int, error: Exception) -> None:
        """A failure report for `Bus`."""
        self.write("error", f"{subscriber} failed, {failures} times so far", source="bus", error=error)
