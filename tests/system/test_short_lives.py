"""Certificates that live for seconds, under load: no link lives on one that has ended, and no link is lost.

The clusters of all releases run at the same time. DISTSEC_SHORT_LIVES=60,600 in the environment makes it ten
minutes with certificates of a minute (docs/certificates.md has the figures).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.releases import Otp
from tests.system import short_lives
from tests.system.cluster import Cluster
from tests.system.loads import Load
from tests.waiting import wait_until

LIFE_SECONDS, RUN_SECONDS = map(int, os.environ.get("DISTSEC_SHORT_LIVES", "20,45").split(","))

Clusters = dict[Otp, Cluster]


@pytest.fixture
def clusters(otps: tuple[Otp, ...], beams: Path, request: pytest.FixtureRequest) -> Iterator[Clusters]:
    """Three nodes of each release, meshed."""
    with ExitStack() as stack:
        made: Clusters = {}
        for otp in otps:
            made[otp] = stack.enter_context(Cluster(otp, beams))
            made[otp].settings["certificates"] = {"lifetime_seconds": LIFE_SECONDS}
            made[otp].start()
            request.node.user_properties.append(("otp", otp.stands_for))
        yield made


@pytest.mark.slow
@pytest.mark.timeout(RUN_SECONDS + 400)
def test_no_link_lives_on_a_certificate_that_has_ended_and_none_is_lost(clusters: Clusters) -> None:
    with ExitStack() as stack:
        loads = {}
        for otp, cluster in clusters.items():
            loads[otp] = stack.enter_context(Load(cluster))
            short_lives.watch(cluster)
        end = time.monotonic() + RUN_SECONDS
        wait_until(lambda: time.monotonic() > end, "the end of the run", RUN_SECONDS + 10, poll_seconds=1.0)
        for load in loads.values():
            load.assert_flows()
        links = {otp: short_lives.seen(cluster) for otp, cluster in clusters.items()}
    for otp, load in loads.items():
        lives = [life for one in links[otp].values() for life in one]
        print(
            f"OTP {otp.release}: {load.report.summary()}; "
            f"{len(lives) - len(links[otp])} renewals of {len(links[otp])} ends of links, "
            f"the latest {-max(life.overdue_ms for life in lives)} ms before the end"
        )
    for otp, cluster in clusters.items():
        loads[otp].report.assert_intact()
        assert len(links[otp]) == 6
        for link, lives in links[otp].items():
            # Each certificate is replaced when a third of its life is left, and links follow.
            assert len(lives) > RUN_SECONDS // LIFE_SECONDS, (otp, link, lives)
            assert max(life.overdue_ms for life in lives) < 0, (otp, link, lives)
        assert not cluster.events("NodeDown")
        assert len(cluster.events("LinkRenewed")) >= 6 * (RUN_SECONDS // LIFE_SECONDS)
