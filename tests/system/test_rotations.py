"""Every rotation in a row, under load, on each release at the same time: nothing lost, no link ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.releases import Otp
from tests.system.cluster import Cluster
from tests.system.loads import Load

ROTATIONS = (
    ("certs", "renew", "--all"),
    ("cookie", "rotate"),
    ("certs", "rotate-ca", "prepare"),
    ("certs", "rotate-ca", "activate"),
    ("certs", "renew", "--all"),  # in the middle of it, by the new CA
    ("certs", "rotate-ca", "prune"),
    ("cookie", "rotate"),
)

Links = dict[tuple[str, str], tuple[str, str, int]]


@pytest.fixture
def clusters(otps: tuple[Otp, ...], beams: Path, request: pytest.FixtureRequest) -> Iterator[list[Cluster]]:
    with ExitStack() as stack:
        made = []
        for otp in otps:
            made.append(stack.enter_context(Cluster(otp, beams)))
            made[-1].start()
            request.node.user_properties.append(("otp", otp.stands_for))
        yield made


def links(cluster: Cluster) -> Links:
    """(node, peer) → serial and issuer of what the link is proven by, and since when it is up."""
    return {
        (node["name"], link["peer"]): (link["serial"], link["issuer"], link["since"])
        for node in cluster.status()["nodes"]
        for link in node["links"]
    }


def rotate(cluster: Cluster) -> dict[str, float]:
    """All of them; how long each took, in seconds."""
    took = {}
    for number, rotation in enumerate(ROTATIONS):
        began = time.monotonic()
        cluster.distsec(*rotation)
        took[f"{number} {' '.join(rotation)}"] = round(time.monotonic() - began, 2)
    return took


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_all_rotations_in_a_row_lose_no_message_and_end_no_link(clusters: list[Cluster]) -> None:
    before = [links(cluster) for cluster in clusters]
    with ExitStack() as stack:
        loads = [stack.enter_context(Load(cluster)) for cluster in clusters]
        with ThreadPoolExecutor(len(clusters)) as pool:
            took = list(pool.map(rotate, clusters))
        for load in loads:
            load.assert_flows()
    for cluster, load, seconds in zip(clusters, loads, took, strict=True):
        print(f"{cluster.otps['a']}: {load.report.summary()}\n  {json.dumps(seconds)}")
    for cluster, load, was in zip(clusters, loads, before, strict=True):
        load.report.assert_intact()
        now = links(cluster)
        assert now.keys() == was.keys()
        for link, (serial, issuer, since) in now.items():
            assert serial != was[link][0]
            assert issuer != was[link][1]
            assert since == was[link][2]  # the same link as before all this
        cluster.wait_well()
        assert not cluster.events("NodeDown")
