"""The use cases of the control socket, without a socket."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distsec.control.service import Service
from distsec.errors import UsageError
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


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("spiffe://demo/node/10.0.0.9/new", "spiffe://demo/node/10.0.0.9/new"),
        ("dns:New.Example.net", "dns:new.example.net"),
        ("dn:CN=new,O=Example", "dn:2.5.4.10:4578616d706c65,2.5.4.3:6e6577"),
        ("dn:2.5.4.10:4578616d706c65,2.5.4.3:6e6577", "dn:2.5.4.10:4578616d706c65,2.5.4.3:6e6577"),
    ],
)
async def test_an_identity_is_handed_on_as_it_is_kept(written: str, kept: str) -> None:
    orchestrator = FakeOrchestrator()
    await Service(orchestrator).allow("new@10.0.0.9", written)
    assert orchestrator.asked == [("allow", "new@10.0.0.9", kept)]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "written", ["", "CN=x", "dn:", "dn:x", "dns:*.example", "spiffe://demo/*", 7, [], "x" * 9999]
)
async def test_what_is_no_identity_reaches_nobody(written: object) -> None:
    orchestrator = FakeOrchestrator()
    with pytest.raises(UsageError) as caught:
        await Service(orchestrator).allow("new@10.0.0.9", written)
    assert caught.value.do
    assert not orchestrator.asked


@pytest.mark.asyncio
@pytest.mark.parametrize(("give_up", "elsewhere"), [("yes", False), (False, 1), (None, None)])
async def test_what_is_neither_true_nor_false_rotates_nothing(give_up: object, elsewhere: object) -> None:
    orchestrator = FakeOrchestrator()
    with pytest.raises(UsageError):
        await Service(orchestrator).rotate_cookies(give_up, elsewhere)
    assert not orchestrator.asked
