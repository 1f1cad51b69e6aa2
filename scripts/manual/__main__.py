"""Writes the manual pages and the shell completions, under the names that they are installed by.

    python -m scripts.manual DIR      DIR/man/man1/distsec-run.1, DIR/bash-completion/completions/distsec, …

The build of a wheel calls it: it needs click and the standard library, and nothing else. The date in the
pages is SOURCE_DATE_EPOCH's, else today's.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from distsec import __version__
from distsec.cli.completion import script
from distsec.cli.group import distsec
from scripts.manual import commands, configuration

ROOT = Path(__file__).resolve().parents[2]

COMPLETIONS = {
    "bash": "bash-completion/completions/distsec",
    "zsh": "zsh/site-functions/_distsec",
    "fish": "fish/vendor_completions.d/distsec.fish",
}
"""Where each shell looks, below a `share` directory."""


def files(root: Path, date: str) -> dict[str, str]:
    """Path below `share` → content. `root` has docs/."""
    codes = commands.exit_codes((root / "docs/commands.md").read_text("utf-8"))
    pages = [
        *commands.pages(distsec, codes),
        configuration.page((root / "docs/configuration.md").read_text("utf-8")),
    ]
    source = f"distsec {__version__}"
    made = {f"man/man{page.section}/{page.file}": page.render(date=date, source=source) for page in pages}
    return made | {path: script(shell, distsec) for shell, path in COMPLETIONS.items()}


def write(share: Path, root: Path = ROOT) -> None:
    """Writes them all below `share`."""
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    for path, content in files(root, time.strftime("%Y-%m-%d", time.gmtime(seconds))).items():
        target = share / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m scripts.manual DIR")
    write(Path(sys.argv[1]))
