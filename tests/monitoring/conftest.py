"""A real cluster, a real Prometheus that scrapes it with the shipped configuration, a real Alertmanager."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.monitoring.servers import Alertmanager, Prometheus, Receiver
from tests.releases import OTPS
from tests.system.cluster import Cluster
from tests.system.conftest import beams  # noqa: F401  the same modules, compiled in the same way


@pytest.fixture(scope="module")
def cluster(beams: Path, agent_ebin: Path) -> Iterator[Cluster]:  # noqa: F811
    """Three nodes of the oldest release, one of which stays stopped."""
    with Cluster(min(OTPS, key=lambda otp: otp.release), beams) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@pytest.fixture(scope="module")
def alertmanager(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alertmanager]:
    with Alertmanager(tmp_path_factory.mktemp("alertmanager"), receiver) as made:
        yield made


@pytest.fixture(scope="module")
def prometheus(
    cluster: Cluster, alertmanager: Alertmanager, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    with Prometheus(tmp_path_factory.mktemp("prometheus"), cluster.metrics_port, alertmanager.port) as made:
        yield made
