"""Three hosts, each with its own state directory and orchestrator, are one cluster; a fourth is strange."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from distsec.errors import NotAcknowledged
from tests.hosts.host import Host, linked, mesh
from tests.hosts.network import Network, NetworkHost
from tests.releases import OTPS, Otp
from tests.system.certificates import Leaf, TestAuthority
from tests.system.cluster import RUNNING_SECONDS
from tests.waiting import PATIENCE_SECONDS, OutOfTime, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.otp, pytest.mark.timeout(600)]  # dozens of commands one by one

MESH_SECONDS = RUNNING_SECONDS

TIES = '[lists:flatten([atom_to_list(N), " ", pid_to_list(P)]) || {N, P} <- erlang:system_info(dist_ctrl)]'


@dataclass
class Place:
    """`first` has the CA; the node b6 of `second` listens on an IPv6 address alone."""

    network: Network
    first: Host
    second: Host
    third: Host
    elsewhere: NetworkHost  # of strangers
    documents: dict[Host, Path]

    @property
    def hosts(self) -> list[Host]:
        return [self.first, self.second, self.third]

    @property
    def peers(self) -> dict[str, int]:
        return {host.node(name): host.port(name) for host in self.hosts for name in host.names}

    def wait_mesh(self, *hosts: Host, seconds: float = MESH_SECONDS) -> None:
        wanted = mesh(hosts or self.hosts)
        self.wait(lambda: wanted <= linked(hosts or self.hosts), "every link", seconds)

    def wait(self, condition, what: str, seconds: float = PATIENCE_SECONDS) -> None:  # type: ignore[no-untyped-def]
        try:
            wait_until(condition, what, seconds, poll_seconds=0.2)
        except OutOfTime as error:
            missing = sorted(mesh(self.hosts) - linked(self.hosts))
            stories = "".join(host.story(25) for host in self.hosts)
            raise OutOfTime(f"{error}\nmissing: {missing}{stories}") from None

    def ties(self) -> dict[str, dict[str, str]]:
        """By node, each of its links as the VM itself holds it: one that went and came again has another
        process. Waits until each node has one with every other. Unlike an event it is never late: one of the
        test before may still be on its way."""
        wanted = mesh(self.hosts)

        def held() -> dict[str, dict[str, str]] | None:
            found = {
                host.node(name): dict(each.split(" ") for each in json.loads(host.erl(name, TIES)))
                for host in self.hosts
                for name in host.names
            }
            return found if {(node, peer) for node in found for peer in found[node]} == wanted else None

        found: dict[str, dict[str, str]] = wait_until(held, "every node to hold every link", MESH_SECONDS)
        return found

    def exchange(self) -> None:
        """Every host takes what every other one exports."""
        self.documents = {host: host.export() for host in self.hosts}
        for host in self.hosts:
            host.take(*(self.documents[other] for other in self.hosts if other is not host))


def place_of(network: Network, otps: list[Otp], beams: Path) -> tuple[Place, list[Host]]:
    hosts = [
        Host(network.add(), otp, beams, names)
        for otp, names in zip(otps, (["a"], ["b", "b6"], ["c"]), strict=True)
    ]
    first, second, third = hosts
    second.table("b6")["address"] = second.where.address_6
    return Place(network, first, second, third, network.add(), {}), hosts


RELEASES = {"one release": [OTPS[0]] * 3, "one of each": [OTPS[0], OTPS[len(OTPS) // 2], OTPS[-1]]}


@pytest.fixture(scope="module", params=["one release"])
def shared(request: pytest.FixtureRequest, beams: Path, agent_ebin: Path) -> Iterator[Place]:
    with Network() as network:
        place, hosts = place_of(network, RELEASES[request.param], beams)
        try:
            bundle = place.first.found()
            for host in (place.second, place.third):
                host.join(place.first, bundle)
            place.exchange()
            for host in hosts:
                host.run()
            for host in hosts:
                host.wait_running()
            place.wait_mesh()
            yield place
        finally:
            for host in hosts:
                host.close()


@pytest.fixture
def place(shared: Place, request: pytest.FixtureRequest) -> Place:
    """Meshed. Each test leaves it so."""
    for host in shared.hosts:
        for otp in host.otps.values():
            request.node.user_properties.append(("otp", otp.stands_for))
    shared.wait_mesh()
    return shared


ON_EVERY_RELEASE = pytest.mark.parametrize("shared", RELEASES, indirect=True)
"""What depends on OTP; the rest is the orchestrators' own."""


@ON_EVERY_RELEASE
def test_every_node_is_linked_with_those_of_the_other_hosts_as_itself(place: Place) -> None:
    assert linked(place.hosts) == mesh(place.hosts)
    others = sorted(peer for name, peer in mesh(place.hosts) if name == place.first.node("a"))
    assert place.first.erl("a", "lists:sort(nodes())") == str(others).replace(" ", "")
    links = {link["peer"]: link for link in place.first.status_of("a")["links"]}
    assert links["c@10.77.0.3"]["identity"] == "spiffe://demo/node/10.77.0.3/c"
    assert links["c@10.77.0.3"]["address"].startswith("10.77.0.3:")
    assert links["b6@10.77.0.2"]["address"].startswith(("[fd77::2]:", "10.77.0.2:"))
    assert place.third.erl("c", "erpc:call('a@10.77.0.1', erlang, node, [])") == "'a@10.77.0.1'"
    allowed = {"peer": "c@10.77.0.3", "result": "allow"}
    place.wait(
        lambda: place.first.metric("distsec_security_connection_attempts_total", **allowed) >= 1,
        "the link with c to be counted",
    )
    assert {host["host"] for host in place.first.status()["hosts"]} == {"host-2", "host-3"}


def leaves(place: Place, who: str) -> Leaf | None:
    directory = place.first.directory / "leaves" / who.replace(" ", "-")
    identities = ["spiffe://demo/node/10.77.0.4/evil"]
    match who:
        case "no certificate":
            return None
        case "another CA":
            return TestAuthority.foreign().issue(directory, identities, host="10.77.0.4")
    return TestAuthority.of_cluster(place.first.state).issue(directory, identities, host="10.77.0.4")


@ON_EVERY_RELEASE
@pytest.mark.parametrize(
    ("who", "kind", "reason"),
    [
        ("no certificate", "CertificateValidationFailed", "certificate_required"),
        ("another CA", "CertificateValidationFailed", "unknown_ca"),
        ("an unlisted name", "UnauthorizedAccess", "not_allowed"),
    ],
)
def test_a_stranger_on_a_fourth_host_is_refused_and_seen_with_its_address(
    place: Place, who: str, kind: str, reason: str
) -> None:
    stranger = place.first.stranger(place.elsewhere, "evil@10.77.0.4", leaves(place, who), place.peers)
    for host in place.hosts:
        for name in host.names:
            assert not stranger.connect(host.node(name))
    assert stranger.links() == "[]"
    for host in place.hosts:
        seen = {"reason": reason, "node": host.node(host.names[0])}
        place.wait(
            lambda host=host, seen=seen: any(  # type: ignore[misc]
                event["address"].startswith("10.77.0.4:") for event in host.events(kind, **seen)
            ),
            f"{kind} of {seen}, from the fourth host",
        )
    stranger.stop()


def test_an_outsider_with_the_cookie_of_a_pair_and_its_own_certificate_may_not_be_either_of_them(
    place: Place,
) -> None:
    """What is worth stealing on one host is a node's key, never a cookie."""
    cookies = place.second.node_directory("b") / "cookie.term"
    cookie = next(line for line in cookies.read_text().split("<<") if line.startswith('"h')).split('"')[1]
    leaf = leaves(place, "an unlisted name")
    evil = {"identity": "spiffe://demo/node/10.77.0.4/evil", "node": place.first.node("a")}
    known = len(place.first.events("UnauthorizedAccess", **evil))
    stranger = place.first.stranger(
        place.elsewhere, "b@10.77.0.2", leaf, {place.first.node("a"): place.first.port("a")}, cookie=cookie
    )
    assert not stranger.connect(place.first.node("a"))
    place.wait(lambda: len(place.first.events("UnauthorizedAccess", **evil)) > known, "the refusal")
    stranger.stop()


def test_a_host_that_is_cut_off_comes_back_and_the_mesh_is_whole_again(place: Place) -> None:
    third, others = place.third, [place.first, place.second]
    third.where.cut_off()
    try:
        gone = {third.node("c")}
        place.wait(lambda: not any(peer in gone for _, peer in linked(others)), "c to be missed")
        place.wait_mesh(*others)
        assert third.states() == {"c": "RUNNING"}
    finally:
        third.where.plug_in()
    place.wait_mesh()


def test_a_node_that_one_host_denies_is_kept_out_there_and_nowhere_else(place: Place) -> None:
    third = place.third.node("c")
    assert third in place.first.distsec("deny", third).stdout
    here = {(place.first.node("a"), third), (third, place.first.node("a"))}
    place.wait(lambda: linked(place.hosts) == mesh(place.hosts) - here, "a link fewer")
    place.first.distsec("allow", third)
    place.wait_mesh()


def test_an_orchestrator_that_is_killed_and_started_again_finds_its_host_as_it_was(place: Place) -> None:
    pids = {name: place.second.pid(name) for name in place.second.names}
    place.second.kill()
    place.second.run()
    place.second.wait_running()
    assert {name: place.second.pid(name) for name in place.second.names} == pids
    place.wait_mesh()


def test_the_cookies_of_one_host_are_rotated_and_those_with_other_hosts_stay(place: Place) -> None:
    def between_hosts() -> str:
        text = (place.second.node_directory("b") / "cookie.term").read_text()
        return next(part for part in text.split("<<") if part.startswith('"h'))

    before = between_hosts()
    place.second.distsec("cookie", "rotate")
    assert between_hosts() == before
    place.second.distsec("restart", place.second.node("b"))
    place.wait_mesh()


def test_a_certificate_that_the_first_host_signs_anew_is_proven_to_the_others(place: Place) -> None:
    third = place.third
    ties, before = place.ties(), third.status_of("c")["certificate"]["serial"]
    ask, answer = third.directory / "again.pem", third.directory / "again-answer.pem"
    third.distsec("certs", "renew", "--offline", "--all", "--out", str(ask))
    place.first.distsec("certs", "sign", str(ask), "--out", str(answer), "--yes")
    third.distsec("certs", "renew", "--offline", "--answer", str(answer))
    # the command puts it in its place; that is noticed, and taken, a moment later
    place.wait(lambda: third.status_of("c")["certificate"]["serial"] != before, "the new one to be taken")
    place.wait(lambda: third.status_of("c")["renewal"]["state"] == "current", "the new one to be in use")
    serial = third.status_of("c")["certificate"]["serial"]

    def seen() -> bool:
        links = {link["peer"]: link["serial"] for link in place.first.status_of("a")["links"]}
        return links.get(third.node("c")) == serial

    place.wait(seen, "the new serial at the other host")
    assert place.ties() == ties, "every link is the same one"


def test_a_document_that_is_old_or_altered_changes_nothing(place: Place) -> None:
    old, new = place.documents[place.third], place.third.export()
    place.first.take(new)
    refused = place.first.distsec("import", "--yes", str(old), check=False)
    assert (refused.returncode, refused.stdout) == (65, "")
    assert "is older than the one that was imported" in refused.stderr
    altered = json.loads(new.read_text())
    altered["export"]["nodes"][0]["port"] += 1
    path = place.third.directory / "altered.json"
    path.write_text(json.dumps(altered))
    refused = place.first.distsec("import", "--yes", str(path), check=False)
    assert refused.returncode == 65
    assert "altered" in refused.stderr
    place.wait_mesh()


def test_an_import_that_a_reload_refuses_is_taken_back(place: Place) -> None:
    first, document = place.first, place.third.export()
    before = (first.state / "hosts.json").read_bytes()
    listen = first.settings["metrics"]["listen"]
    first.settings["metrics"]["listen"] = "127.0.0.1:1025"
    first.write()
    try:
        refused = first.distsec("import", "--yes", str(document), check=False)
    finally:
        first.settings["metrics"]["listen"] = listen
        first.write()
    assert refused.returncode == 78
    assert "metrics.listen" in refused.stderr
    assert (first.state / "hosts.json").read_bytes() == before


def test_a_host_that_is_forgotten_is_kept_out_until_it_is_imported_again(place: Place) -> None:
    document = place.third.export()
    place.first.take(document)
    forgotten = place.first.distsec("import", "--forget", "host-3", "--yes", check=False)
    assert forgotten.returncode in {0, NotAcknowledged.exit_code}, forgotten.stderr  # kept, either way
    pair = {(place.first.node("a"), place.third.node("c")), (place.third.node("c"), place.first.node("a"))}
    place.wait(lambda: not pair & linked(place.hosts), "the link to end")
    place.first.take(document)
    place.wait_mesh()


def test_a_node_that_is_added_on_one_host_is_let_in_everywhere_when_its_document_is_imported(
    place: Place,
) -> None:
    third = place.third
    (port,) = {third.port("c") + 1}
    third.settings["nodes"].append({**third.table("c"), "name": third.node("d"), "port": port})
    third.settings["nodes"][-1]["command"] = [
        word.replace("/c.sock", "/d.sock") for word in third.table("c")["command"]
    ]
    third.settings["security"]["distribution"]["allowed_nodes"].append(third.node("d"))
    third.names.append("d")
    third.ports["d"], third.otps["d"] = port, third.otps["c"]
    third.write()
    ask, answer = third.directory / "d.pem", third.directory / "d-answer.pem"
    third.distsec("init", str(third.directory), "--request", str(ask))
    place.first.distsec("certs", "sign", str(ask), "--out", str(answer), "--yes")
    third.distsec("certs", "renew", "--offline", "--answer", str(answer), check=False)
    third.kill()
    third.run()
    third.wait_running()
    document = third.export()
    for host in (place.first, place.second):
        shown = host.distsec("import", "--dry-run", str(document)).stdout
        assert f"+ d@10.77.0.3  10.77.0.3:{port}" in shown
        host.take(document)
    place.wait_mesh()


def test_a_new_ca_comes_in_on_all_hosts_and_no_step_locks_another_host_out(place: Place) -> None:
    """The key of both CAs is on the first host. Every link stays up throughout."""
    first, others = place.first, [place.second, place.third]
    ties = place.ties()
    rotate = ("certs", "rotate-ca")
    first.distsec(*rotate, "prepare")
    early = first.distsec(*rotate, "activate", check=False)
    assert early.returncode == 64
    assert "not known to trust the new CA" in early.stderr
    coming = (first.state / "ca/next/certificate.pem").read_bytes()
    for host in others:
        place_for = host.state / "ca/next/certificate.pem"
        place_for.parent.mkdir(mode=0o700, exist_ok=True)
        place_for.touch(mode=0o600)
        place_for.write_bytes(coming)
        host.distsec(*rotate, "prepare")
    place.exchange()
    first.distsec(*rotate, "activate")
    early = first.distsec(*rotate, "prune", check=False)
    assert early.returncode == 64
    assert "not known to have certificates of the new CA" in early.stderr
    for host in others:
        lacking = host.distsec(*rotate, "activate", check=False)
        assert lacking.returncode != 0
        ask, answer = host.directory / "new-ca.pem", host.directory / "new-ca-answer.pem"
        host.distsec("certs", "renew", "--offline", "--all", "--out", str(ask))
        first.distsec("certs", "sign", str(ask), "--out", str(answer), "--yes")
        host.distsec("certs", "renew", "--offline", "--answer", str(answer))
        host.distsec(*rotate, "activate")
    place.exchange()
    for host in place.hosts:
        host.distsec(*rotate, "prune")
    assert place.ties() == ties, "no link has ended"
    place.wait_mesh()
