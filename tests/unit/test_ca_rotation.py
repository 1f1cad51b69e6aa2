"""The interpreter of a rotation of the CA: saved before done, one command at a time, nothing by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from distsec.core import rotation as core
from distsec.core.rotation import Command, Phase, Rotation
from distsec.errors import CaKeyUnavailable, NotAcknowledged, StoreError, Unavailable, UsageError
from distsec.model.cluster import Carrier, Mode
from distsec.model.events import EventType
from distsec.model.names import NodeName
from distsec.observe.bus import Bus
from distsec.supervisor import ca_rotation
from distsec.supervisor.ca_rotation import CaRotation

A, B = "a@127.0.0.1", "b@127.0.0.1"


class Files:
    """Implements what is used of supervisor.succession.Succession; `done`: in order."""

    def __init__(self) -> None:
        self.phase = Phase.IDLE
        self.done: list[str] = []
        self.errors: dict[str, Exception] = {}

    def _do(self, what: str) -> None:
        if (error := self.errors.get(what)) is not None:
            raise error
        self.done.append(what)

    def rotation(self) -> Rotation:
        return Rotation(self.phase)

    def since(self) -> int | None:
        return None

    def save(self, phase: Phase, now: float) -> None:
        self._do(f"save {phase}")
        self.phase = phase

    def create(self, cluster: str, now: float) -> None:
        self._do("create")

    def retire(self) -> None:
        self._do("retire")

    def discard(self) -> None:
        self._do("discard")

    def tidy(self) -> None:
        self._do("tidy")


class Nodes:
    """Implements what is used of supervisor.ca_nodes.CaNodes."""

    def __init__(self, cluster: Any, renewal: Any) -> None:
        self.files: Files = cluster.machine.succession
        self.waiting: set[str] = set()
        self.missing: dict[str, str] = {}
        self.refusing = True
        self.hold: asyncio.Event | None = None
        self.brought = 0

    def names(self) -> frozenset[str]:
        return frozenset({A, B})

    async def bring(self, phase: Phase, names: Collection[str]) -> core.Brought:
        self.brought += 1
        if self.hold is not None:
            await self.hold.wait()
        self.files.done.append(f"bring {phase}")
        missing = {name: why for name, why in self.missing.items() if name in names}
        return core.Brought(phase, self.names(), frozenset(names) - missing.keys(), missing, frozenset(names))

    async def links(self, phase: Phase) -> dict[str, str]:
        self.files.done.append(f"links {phase}")
        return {}

    async def refused(self) -> dict[str, str]:
        self.files.done.append("refused")
        return {} if self.refusing else {B: "it does not refuse it"}


class Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ca_rotation, "CaNodes", Nodes)
        self.files = Files()
        self.bus = Bus()
        self.ending = False
        self.nodes = dict.fromkeys((A, B))
        self.spec = SimpleNamespace(
            name="demo", mode=Mode.PRODUCTION, carrier=Carrier.DISTSEC, nodes=(), peers=(), rules=(),
            allowed_nodes=(NodeName.parse(A), NodeName.parse(B)), identities=(),
        )  # fmt: skip
        self.machine = SimpleNamespace(succession=self.files)
        overlay = SimpleNamespace(allow=(), deny=frozenset[str](), tainted=())
        self.desk = SimpleNamespace(wanted=SimpleNamespace(overlay=overlay))
        self.changes = 0
        self.locks: asyncio.Lock | None = None  # what `holding` takes of nodes
        self.rotation = CaRotation(self, self, self._changed)  # type: ignore[arg-type]
        self.told: Nodes = self.rotation._nodes  # type: ignore[assignment]

    def _changed(self) -> None:
        self.changes += 1

    def note(self, level: str, text: str, **fields: Any) -> None:
        pass

    @asynccontextmanager
    async def holding(self, names: Collection[str]) -> AsyncIterator[None]:
        assert set(names) in ({A, B}, set())
        if not names or self.locks is None:
            yield
            return
        async with self.locks:
            yield

    def command(self, command: Command, **how: Any) -> dict[str, Any]:
        return asyncio.run(self.rotation.command(command, **how))

    def events(self) -> list[EventType]:
        return [each.event.type for each in self.bus.recent()]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_each_phase_is_saved_before_anything_of_it_is_done(scene: Scene) -> None:
    for command in (Command.PREPARE, Command.ACTIVATE, Command.PRUNE):
        scene.command(command)
    assert scene.files.done == [
        "save creating", "create", "save preparing", "bring preparing", "save prepared",
        "bring prepared", "save activating", "bring activating", "links activating", "save activated",
        "bring activated", "links activated", "save pruning", "bring pruning", "refused",
        "save retiring", "retire", "save idle", "discard",
    ]  # fmt: skip
    assert scene.events() == [
        EventType.CA_ROTATION_PREPARED, EventType.CA_ROTATION_ACTIVATED, EventType.CA_ROTATION_PRUNED
    ]  # fmt: skip
    assert scene.changes == 1


def test_a_rollback_is_told_as_one(scene: Scene) -> None:
    scene.command(Command.PREPARE)
    answer = scene.command(Command.ROLLBACK)
    assert (answer["phase"], answer["rolled_back"], answer["next"]) == ("idle", True, None)
    assert scene.events()[-1] is EventType.CA_ROTATION_ROLLED_BACK
    assert scene.changes == 0


def test_whoever_is_missing_is_named_with_the_way_on_and_the_way_back(scene: Scene) -> None:
    scene.told.missing = {B: "its agent does not answer"}
    with pytest.raises(NotAcknowledged) as caught:
        scene.command(Command.PREPARE)
    assert caught.value.missing == (B,)
    assert "preparing, and nobody is locked out: b@127.0.0.1: its agent does not answer" in str(caught.value)
    assert "`distsec certs rotate-ca prepare` goes on, `rollback` leads back" in str(caught.value)
    document = scene.rotation.document()
    assert document is not None
    assert (document["phase"], document["behind"]) == ("preparing", [B])


def test_a_node_that_admits_the_old_ca_keeps_its_key(scene: Scene) -> None:
    scene.command(Command.PREPARE)
    scene.command(Command.ACTIVATE)
    scene.told.refusing = False
    with pytest.raises(NotAcknowledged, match="it does not refuse it"):
        scene.command(Command.PRUNE)
    assert "retire" not in scene.files.done
    assert scene.files.phase is Phase.PRUNING


@pytest.mark.parametrize(
    ("step", "error", "phase"),
    [
        ("save preparing", StoreError("the disk is full"), Phase.CREATING),
        ("create", CaKeyUnavailable("sealed"), Phase.CREATING),
        ("save creating", StoreError("the disk is full"), Phase.IDLE),
    ],
)
def test_what_cannot_be_done_is_raised_and_gone_on_with_later(
    scene: Scene, step: str, error: Exception, phase: Phase
) -> None:
    scene.files.errors[step] = error
    with pytest.raises(type(error)):
        scene.command(Command.PREPARE)
    assert scene.files.phase is phase
    scene.files.errors.clear()
    assert scene.command(Command.PREPARE)["phase"] == "prepared"


def test_one_command_at_a_time(scene: Scene) -> None:
    async def both() -> None:
        scene.told.hold = asyncio.Event()
        first = asyncio.create_task(scene.rotation.command(Command.PREPARE))
        while scene.files.phase is not Phase.PREPARING:
            await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="`certs rotate-ca prepare` is under way"):
            await scene.rotation.command(Command.ROLLBACK)
        scene.told.hold.set()
        assert (await first)["phase"] == "prepared"

    asyncio.run(both())


def test_a_command_waits_for_no_silent_node_that_something_else_waits_for(scene: Scene) -> None:
    async def both() -> None:
        scene.files.phase = Phase.PREPARING
        scene.told.hold = asyncio.Event()  # nobody ever answers
        held = scene.locks = asyncio.Lock()
        await held.acquire()  # somebody renews the silent one
        background = asyncio.create_task(scene.rotation.run())
        while not scene.told.brought:
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            command = asyncio.create_task(scene.rotation.command(Command.ROLLBACK))
            while scene.told.brought < 2:
                await asyncio.sleep(0)
            assert scene.files.phase is Phase.NARROWING
            scene.told.hold.set()
            assert (await command)["phase"] == "idle"
        assert not background.done()
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)

    asyncio.run(both())
    assert scene.files.done == [
        "tidy",
        "save narrowing",
        "bring narrowing",
        "save discarding",
        "discard",
        "save idle",
    ]


def test_a_command_that_does_not_fit_or_cannot_be_begun_changes_nothing(scene: Scene) -> None:
    with pytest.raises(UsageError, match="nothing to activate"):
        scene.command(Command.ACTIVATE)
    scene.ending = True
    with pytest.raises(Unavailable):
        scene.command(Command.PREPARE)
    scene.ending, scene.spec.carrier = False, Carrier.INET_TCP
    with pytest.raises(UsageError, match="no certificates"):
        scene.command(Command.PREPARE)
    assert scene.files.done == []


def test_an_orchestrator_that_starts_brings_nodes_to_the_saved_phase_and_no_further(scene: Scene) -> None:
    scene.files.phase = Phase.ACTIVATING

    async def start() -> None:
        task = asyncio.create_task(scene.rotation.run())
        while "bring activating" not in scene.files.done:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(start())
    assert scene.files.done == ["tidy", "bring activating"]
    document = scene.rotation.document()
    assert document is not None
    assert (document["phase"], document["next"], document["behind"]) == ("activating", "activate", [])


def test_a_prune_that_was_killed_at_its_end_is_finished_by_the_next_one(scene: Scene) -> None:
    scene.files.phase = Phase.RETIRING
    assert scene.command(Command.PRUNE)["phase"] == "idle"
    assert scene.files.done == ["retire", "save idle", "discard"]
    assert scene.changes == 1
