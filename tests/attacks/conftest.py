"""One guarded node per release and module, which all attacks of that module are tried on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.attacks.scene import Scene
from tests.releases import OTPS, Otp
from tests.system.conftest import beams  # noqa: F401  the same modules, compiled in the same way
from tests.system.of_module import of_module

otp = of_module(OTPS)


@pytest.fixture(scope="module")
def scene_of_module(otp: Otp, beams: Path) -> Iterator[Scene]:  # noqa: F811
    with Scene(otp, beams) as scene:
        yield scene


@pytest.fixture
def scene(scene_of_module: Scene) -> Iterator[Scene]:
    """The guarded node, with nothing counted, linked or harmed since the test began."""
    scene_of_module.begin()
    with ExitStack() as stack:
        scene_of_module.test = stack
        yield scene_of_module
