"""The use cases of the control socket, without a socket."""

from __future__ import annotations

from dataclasses import replace

from distsec.control.service import Service
from distsec.model.events import EventType, Severity
from distsec.observe.bus import RECENT_EVENTS
from tests.unit.control.fake_orchestrator import FakeOrchestrator, refusal


def test_a_violation_that_the_bus_still_holds_is_told_whatever_came_after_it() -> None:
    orchestrator = FakeOrchestrator()
    orchestrator.bus.publish(replace(refusal(), severity=Severity.CRITICAL))
    link = replace(refusal(), type=EventType.LINK_UP, severity=Severity.NOTICE, result=None)
    for _ in range(RECENT_EVENTS):
        orchestrator.bus.publish(refusal())
        orchestrator.bus.publish(link)
    events = Service(orchestrator).events()
    assert events[0]["severity"] == "critical"
    assert len(events) == 1 + 2 * RECENT_EVENTS
