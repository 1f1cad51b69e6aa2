"""Releases that are started with `-mode embedded`, with their own ERTS and no other Erlang beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.releases import Otp
from tests.system.beam_control import Control
from tests.system.cluster import Cluster
from tests.system.target import ship

SMALL = ("kernel", "stdlib", "sasl")
WITH_SSL = (*SMALL, "crypto", "asn1", "public_key", "ssl")


def shipped(cluster: Cluster, name: str, otp: Otp, applications: tuple[str, ...]) -> None:
    """Has a node started by the script of a release."""
    program = ship(otp, cluster.directory / f"release-{name}", applications)
    control = Control.arguments(cluster.beams, cluster.directory / f"{name}.sock")
    cluster.table(name)["command"] = [str(program), "-noinput", *control]


def libraries(otp: Otp) -> str:
    """The lib directory of an installation."""
    root = next(
        parent for parent in Path(otp.erl).resolve().parents if (parent / "releases/start_erl.data").exists()
    )
    return str(root / "lib")


@pytest.mark.parametrize("carrier", ["distsec", "inet_tls"])
def test_releases_with_and_without_ssl_are_guarded_and_linked(
    otp: Otp, make_cluster: Callable[..., Cluster], carrier: str
) -> None:
    cluster = make_cluster(otp, ["whole", "small", "plain"], carrier=carrier)
    shipped(cluster, "whole", otp, WITH_SSL)
    shipped(cluster, "small", otp, SMALL)
    cluster.table("small")["otp_libraries"] = libraries(otp)
    cluster.start()
    for name in ("whole", "small"):
        assert cluster.erl(name, "init:get_argument(mode)") == '{ok,[["interactive"],["embedded"]]}'
        assert cluster.erl(name, "application:get_env(kernel, shipped)") == "{ok,true}", "its own sys.config"
        assert cluster.erl(name, "init:get_argument(shipped)") == '{ok,[["yes"]]}', "its own vm.args"
        assert cluster.erl(name, "distsec_snapshot:carrier()") == f'<<"{carrier}">>'
    release = str(cluster.directory / "release-whole/shipped/lib/")
    assert release in cluster.erl("whole", "[code:which(M) || M <- [kernel, ssl, crypto, public_key]]")
    small = cluster.erl("small", "[code:which(M) || M <- [ssl, crypto]] ++ [code:which(kernel)]")
    assert (
        f'"{libraries(otp)}/ssl-' in small
        and str(cluster.directory / "release-small/shipped/lib/kernel") in small
    )
    assert {link["verdict"] for node in cluster.status()["nodes"] for link in node["links"]} == {"allow"}


def test_libraries_of_the_release_come_before_those_of_otp_libraries(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["whole"])
    shipped(cluster, "whole", otp, WITH_SSL)
    cluster.table("whole")["otp_libraries"] = libraries(otp)
    cluster.start()
    for module in ("ssl", "crypto", "public_key"):
        assert str(cluster.directory / "release-whole/shipped/lib/") in cluster.erl(
            "whole", f"code:which({module})"
        )


def test_a_release_without_ssl_that_is_given_none_does_not_listen_and_says_what_is_missing(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["small"])
    shipped(cluster, "small", otp, SMALL)
    cluster.init()
    cluster.run()
    cluster.wait_states(small="FATAL")
    status = cluster.status_of("small")
    assert status["reason"] == "carrier_not_in_force"
    assert "otp_libraries" in status["detail"] and "crypto" in status["detail"]
