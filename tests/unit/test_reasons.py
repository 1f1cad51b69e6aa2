"""Every place that knows why a peer may be refused knows the same reasons."""

from __future__ import annotations

import re
from pathlib import Path

from distsec.beam.security_events import REFUSAL_EVENTS
from distsec.model.policy import Reason

ROOT = Path(__file__).parents[2]
REASONS = {str(reason) for reason in Reason}


def test_the_node_counts_them_all_and_no_others() -> None:
    source = (ROOT / "erlang/src/distsec_count.erl").read_text()
    listed = re.search(r"^reasons\(\) ->\s*\[([^]]*)\]\.$", source, re.MULTILINE)
    assert listed
    counted = re.findall(r"\w+", listed[1])
    assert len(counted) == len(set(counted))
    assert set(counted) == REASONS


def test_the_table_of_the_manual_has_them_all_and_no_others() -> None:
    section = (ROOT / "docs/metrics.md").read_text().partition("\n## Reasons\n")[2]
    cells = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section, re.MULTILINE)
    documented = [name for cell in cells for name in re.findall(r"\w+", cell)]
    assert len(documented) == len(set(documented))
    assert set(documented) == REASONS


def test_each_is_an_event_of_the_field() -> None:
    assert set(REFUSAL_EVENTS) == set(Reason)
