"""Where commands draw: stdout as a terminal of rich's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 80


def console() -> Console:
    """Colours on a terminal only, and there not with NO_COLOR; piped, it is plain and 80 columns wide."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            """rich would end with 1 here, which means another thing; the group knows better."""
            raise  # rich calls this while it handles the BrokenPipeError

    columns = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Terminal(highlight=False, markup=False, emoji=False, width=columns)
