"""certs list and revoke, against a machine in memory: identities, reasons, lists, and what was issued."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from distsec.core.renewal import Rules
from distsec.core.wanted import Overlay
from distsec.errors import NameInvalid, NotAcknowledged, NotFound, StoreError, UsageError
from distsec.model.cluster import Certificate, IdentitySpec
from distsec.model.events import EventType
from distsec.model.names import NodeName
from distsec.pki.crl import ListState, RevocationReason
from distsec.pki.issued import Issued
from distsec.supervisor.revocation import state_of
from tests.unit.fake_machine import FakeMachine, cluster_spec, node_spec
from tests.unit.test_containment import all_running, cluster_of
from tests.unit.test_supervisor import A, B, link

ID_A, ID_B = "spiffe://demo/node/127.0.0.1/a", "spiffe://demo/node/127.0.0.1/b"
FAR = "far@10.9.0.1"
NOW = 1_000_000.0


def certificate(**fields: object) -> Certificate:
    given: dict[str, object] = {"identity": ID_A, "serial": "0a", "issuer": "CN=x", "not_after": 2_000_000}
    return Certificate(**{**given, "not_before": 500_000, **fields})  # type: ignore[arg-type]


# ---- which state it is in ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "overlay", "state"),
    [
        ({}, Overlay(), "valid"),
        ({"not_before": None}, Overlay(), "valid"),
        ({"not_after": 1_000_001}, Overlay(), "expiring"),
        ({"not_after": 999_999}, Overlay(), "expired"),
        ({"not_before": 1_000_001}, Overlay(), "not_yet_valid"),
        ({}, Overlay(revoked=frozenset({"0a"})), "revoked"),
        ({}, Overlay(revoked_identities=frozenset({ID_A})), "revoked"),
        ({}, Overlay(revoked_identities=frozenset({"dns:a.example"})), "revoked"),
        ({}, Overlay(revoked_identities=frozenset({ID_B})), "valid"),
        ({"not_after": 999_999}, Overlay(revoked=frozenset({"0a"})), "revoked"),
        ({"identity": None}, Overlay(revoked_identities=frozenset({ID_A})), "valid"),
    ],
)
def test_the_state_of_a_certificate(fields: dict[str, object], overlay: Overlay, state: str) -> None:
    assert state_of(certificate(**fields), overlay, "dns:a.example", Rules(), NOW) == state


def test_what_is_expiring_follows_from_when_it_is_renewed() -> None:
    soon = certificate(not_after=1_100_000)
    assert state_of(soon, Overlay(), None, Rules(renew_before_seconds=50_000), NOW) == "valid"
    assert state_of(soon, Overlay(), None, Rules(renew_before_seconds=150_000), NOW) == "expiring"


# ---- identities --------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_an_identity_is_revoked_with_every_certificate_of_it_that_is_known() -> None:
    async with cluster_of("a", "b") as cluster:
        await all_running(cluster)
        fake = cluster.fake(B)
        fake.links = (replace(link(A), identity=ID_A, serial="f1"), replace(link("x@h"), serial="f2"))
        fake.says(fake.snapshot())
        answer = await cluster.supervisor.revoke(ID_A, RevocationReason.KEY_COMPROMISE)
        assert answer["serials"] == ["6100", "f1"]
        assert (answer["identity"], answer["current_of"]) == (ID_A, [A])
        assert cluster.machine.overlay.revoked_identities == {ID_A}
        assert cluster.machine.overlay.revoked == {"6100", "f1"}
        assert cluster.machine.records.reasons == dict.fromkeys(["6100", "f1"], "keyCompromise")
        events = cluster.of_type(EventType.CERTIFICATE_REVOKED)
        assert {(event.identity, event.serial, event.reason) for event in events} == {
            (ID_A, "6100", "keyCompromise"),
            (ID_A, "f1", "keyCompromise"),
        }
        assert cluster.status(A)["certificate"]["revoked"] is True
        assert cluster.status(B)["certificate"]["revoked"] is False
        listed = await cluster.supervisor.certificates()
        assert listed["revoked_identities"] == [ID_A]
        assert {each["node"]: each["state"] for each in listed["certificates"]}[A] == "revoked"


@pytest.mark.asyncio
async def test_with_a_node_every_certificate_that_it_was_given_is_revoked() -> None:
    """One that was renewed is good until it ends, and whoever took its key has it."""
    async with cluster_of("a", "b") as cluster:
        await all_running(cluster)
        cluster.machine.records.given_serials = {A: frozenset({"01", "02", "6100"}), B: frozenset({"6200"})}
        assert (await cluster.supervisor.revoke(A))["serials"] == ["01", "02", "6100"]
        cluster.machine.records.given_serials[B] = frozenset({"03", "6200"})
        assert (await cluster.supervisor.revoke(ID_B))["serials"] == ["03", "6200"]


@pytest.mark.asyncio
async def test_a_node_that_shows_anothers_certificate_has_its_own_revoked() -> None:
    async with cluster_of("a", "b") as cluster:
        await all_running(cluster)
        cluster.machine.records.given_serials = {A: frozenset({"01", "02"}), B: frozenset({"6100", "6200"})}
        listed = await cluster.supervisor.certificates()  # what stands in a's directory is b's "6100"
        assert [each["node"] for each in listed["certificates"]] == [B]
        assert listed["unknown"] == {A: "the certificate in its directory is none that it was given"}
        assert (await cluster.supervisor.revoke(A))["serials"] == ["01", "02"]
        assert cluster.machine.overlay.revoked == {"01", "02"}


@pytest.mark.asyncio
async def test_an_identity_that_nobody_has_shown_yet_is_revoked_all_the_same() -> None:
    async with cluster_of("a") as cluster:
        await all_running(cluster)
        answer = await cluster.supervisor.revoke("dns:Never.Example")
        assert (answer["serials"], answer["identity"]) == ([], "dns:never.example")
        assert cluster.machine.overlay.revoked_identities == {"dns:never.example"}
        (event,) = cluster.of_type(EventType.CERTIFICATE_REVOKED)
        assert (event.identity, event.serial) == ("dns:never.example", None)


@pytest.mark.asyncio
async def test_a_lie_about_an_identity_costs_nobody_else_a_certificate() -> None:
    async with cluster_of("a", "b") as cluster:
        await all_running(cluster)
        fake = cluster.fake(B)
        fake.links = (replace(link(A), identity=ID_A, serial="6200"),)  # that is b's own
        fake.says(fake.snapshot())
        await cluster.supervisor.revoke(ID_A)
        assert cluster.machine.overlay.revoked == {"6100"}


@pytest.mark.asyncio
@pytest.mark.parametrize("text", ["spiffe://", "spiffe://demo/*", "dns:*.example", "dn:", "dn:nonsense"])
async def test_what_is_no_whole_identity_revokes_nothing(text: str) -> None:
    async with cluster_of("a") as cluster:
        await all_running(cluster)
        before = cluster.machine.overlay
        with pytest.raises(NameInvalid):
            await cluster.supervisor.revoke(text)
        assert cluster.machine.overlay == before


@pytest.mark.asyncio
async def test_allowing_the_node_lifts_it_and_says_so_and_certificates_stay_revoked() -> None:
    async with cluster_of("a", "b") as cluster:
        await all_running(cluster)
        await cluster.supervisor.revoke(ID_A)
        assert (await cluster.supervisor.allow(B, None))["lifted"] == []
        assert (await cluster.supervisor.allow(A, None))["lifted"] == [ID_A]
        assert cluster.machine.overlay.revoked_identities == frozenset()
        assert cluster.machine.overlay.revoked == {"6100"}


@pytest.mark.asyncio
async def test_a_node_that_a_rule_binds_is_out_when_what_it_is_bound_to_is_revoked() -> None:
    bound = (IdentitySpec(NodeName.parse(A), "dns:a.example"),)
    machine = FakeMachine(replace(cluster_spec(node_spec("a"), node_spec("b")), identities=bound))
    async with cluster_of(machine=machine) as cluster:
        await all_running(cluster)
        answer = await cluster.supervisor.revoke("dns:a.example")
        assert answer["current_of"] == [A]
        listed = await cluster.supervisor.certificates()
        assert {each["node"]: each["state"] for each in listed["certificates"]}[A] == "revoked"
        assert (await cluster.supervisor.allow(A, None))["lifted"] == ["dns:a.example"]


@pytest.mark.asyncio
async def test_nothing_is_revoked_where_that_cannot_be_kept() -> None:
    async with cluster_of("a") as cluster:
        await all_running(cluster)
        cluster.machine.records.note_error = StoreError("the disk is full")
        with pytest.raises(StoreError):
            await cluster.supervisor.revoke(ID_A)
        assert cluster.machine.overlay.revoked_identities == frozenset()


@pytest.mark.asyncio
async def test_a_node_that_does_not_answer_is_named_and_the_revocation_stands() -> None:
    async with cluster_of("a", "b") as cluster:
        await all_running(cluster)
        cluster.fake(B).refuses_policy = "malformed"
        with pytest.raises(NotAcknowledged, match=f"{ID_A}, 6100 is revoked, for good, but {B} refused it"):
            await cluster.supervisor.revoke(ID_A)
        assert cluster.machine.overlay.revoked_identities == {ID_A}


@pytest.mark.asyncio
async def test_the_cas_own_certificate_is_not_revoked() -> None:
    async with cluster_of("a") as cluster:
        await all_running(cluster)
        cluster.machine.records.authority_serials = lambda: frozenset({"ca01"})  # type: ignore[method-assign]
        with pytest.raises(UsageError, match="the CA's own certificate"):
            await cluster.supervisor.revoke("CA:01")


@pytest.mark.asyncio
@pytest.mark.parametrize("error", [None, StoreError("the disk is full")])
async def test_what_a_compromised_node_had_is_revoked_for_that_reason_and_a_full_disk_stops_nothing(
    error: StoreError | None,
) -> None:
    async with cluster_of("a", "b") as cluster:
        await all_running(cluster)
        cluster.machine.records.note_error = error
        await cluster.supervisor.deny(A, compromised=True)
        assert cluster.machine.overlay.revoked == {"6100"}
        noted = {} if error else {"6100": RevocationReason.KEY_COMPROMISE}
        assert cluster.machine.records.reasons == noted


# ---- lists -------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_list_is_made_of_what_is_revoked_and_one_that_is_behind_is_said_to_be() -> None:
    async with cluster_of("a") as cluster:
        await all_running(cluster)
        records = cluster.machine.records
        records.lists = (ListState("ca", 7, 1_763_764_000, 1, "the CA's key is sealed"),)
        answer = await cluster.supervisor.revoke("0a")
        assert records.listed == {"0a"}
        assert answer["lists"] == [
            {
                **{"file": "ca/crl.pem", "number": 7, "next_update": 1_763_764_000, "entries": 1},
                "behind": "the CA's key is sealed",
            }
        ]
        await cluster.supervisor.certificates()
        assert cluster.log.getvalue().count("the list of revoked certificates (CRL) is behind") == 1


# ---- certificates for others -------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_what_was_issued_for_a_node_elsewhere_is_listed_told_of_and_revoked_by_its_name() -> None:
    async with cluster_of("a") as cluster:
        await all_running(cluster)
        identity = NodeName.parse(FAR).identity("demo")
        theirs = certificate(identity=identity, serial="fa", not_after=int(time.time()) + 9_000_000)
        cluster.machine.records.issued_elsewhere = (Issued(NodeName.parse(FAR), theirs, b""),)
        (listed,) = (await cluster.supervisor.certificates())["issued"]
        assert (listed["node"], listed["serial"], listed["revoked"]) == (FAR, "fa", False)
        assert (await cluster.supervisor.told_of_issue("fa"))["node"] == FAR
        (event,) = cluster.of_type(EventType.CERTIFICATE_ISSUED)
        assert (event.peer, event.identity, event.serial) == (FAR, identity, "fa")
        with pytest.raises(NotFound):
            await cluster.supervisor.told_of_issue("fb")
        assert (await cluster.supervisor.revoke(FAR))["serials"] == ["fa"]
        assert (await cluster.supervisor.revoke(identity))["serials"] == ["fa"]
