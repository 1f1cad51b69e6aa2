"""Which nodes nothing could start. With the supervisor: tests/unit/test_supervisor.py."""

from __future__ import annotations

from typing import Any

import pytest

from distsec.errors import RuntimeMissing
from distsec.model.cluster import NodeSpec
from distsec.supervisor.fitness import find_unfit
from tests.unit.fake_machine import node_spec

A, B = "a@127.0.0.1", "b@127.0.0.1"


class Machine:
    def __init__(self, errors: dict[str, Exception]) -> None:
        self._errors = errors

    async def check_runtime(self, node: NodeSpec) -> None:
        if (error := self._errors.get(str(node.name))) is not None:
            raise error


@pytest.mark.asyncio
async def test_a_bug_about_one_node_keeps_no_other_from_starting_and_is_told() -> None:
    """A node with a user of its own may have written what is looked at."""
    told: list[dict[str, Any]] = []
    machine = Machine({A: OSError(36, "File name too long"), B: RuntimeMissing("OTP 24")})
    found = await find_unfit(
        machine, [node_spec("a"), node_spec("b")], 2, lambda *_, **fields: told.append(fields)
    )
    assert found == {B: "OTP 24"}
    assert [(each["node"], "File name too long" in each["error"]) for each in told] == [(A, True)]
