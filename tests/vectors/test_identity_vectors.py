"""Both languages read the same names from the same certificates, and an operator can write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from hypothesis import given, settings
from hypothesis import strategies as st

from distsec.beam.erlang_text import Term
from distsec.model.identities import canonical_identity, is_certificate_name
from distsec.pki.profile import identities_of
from distsec.pki.subject import identity_from_text, names_of
from tests.releases import Otp
from tests.vectors.asked import ask_script

HERE = Path(__file__).parent
CASES = json.loads((HERE / "identities.json").read_text())["cases"]
KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime(2026, 1, 1, tzinfo=UTC)

Subject = Sequence[Sequence[Sequence[str]]]


def certificate(subject: Subject, dns: Sequence[str], uris: Sequence[str]) -> x509.Certificate:
    name = x509.Name(
        x509.RelativeDistinguishedName(
            x509.NameAttribute(x509.ObjectIdentifier(oid), value, _ASN1Type[kind], _validate=False)
            for oid, kind, value in rdn
        )
        for rdn in subject
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    alternatives: list[x509.GeneralName] = [x509.DNSName(host) for host in dns]
    alternatives += [x509.UniformResourceIdentifier(uri) for uri in uris]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(KEY, hashes.SHA256())


def certificate_of(case: dict[str, Any]) -> x509.Certificate:
    return certificate(case["subject"], case["dns"], case["uris"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"].replace(" ", "_"))
def test_python_reads_the_names_of_the_vector(case: dict[str, Any]) -> None:
    assert list(names_of(certificate_of(case))) == case["names"]
    for name in case["names"]:
        assert canonical_identity(name) == name and is_certificate_name(name)


@pytest.mark.parametrize("case", [case for case in CASES if case["shown"]], ids=lambda case: case["case"])
def test_what_is_shown_can_be_typed_to_mean_that_certificate(case: dict[str, Any]) -> None:
    assert identity_from_text(case["shown"]) in {*case["names"], *case["uris"]}


@pytest.mark.otp
def test_erlang_reads_the_names_of_the_vectors(otp: Otp, agent_ebin: Path, tmp_path: Path) -> None:
    answers = ask_erlang(otp, agent_ebin, tmp_path, list(map(certificate_of, CASES)))
    for case, (names, uris, shown) in zip(CASES, answers, strict=True):
        assert (names, uris) == (case["names"], case["uris"]), case["case"]
        assert case["shown"] in {None, shown}, case["case"]


TEXTS = st.text('aB ,+=:#\\"é\u0416\u202e\x00', min_size=1, max_size=4)
OIDS = ["2.5.4.3", "2.5.4.10", "2.5.4.11", "0.9.2342.19200300.100.1.1", "1.2.3.4"]
KINDS = ["UTF8String", "UTF8String", "BMPString", "UniversalString"]
subjects = st.lists(
    st.lists(
        st.tuples(st.sampled_from(OIDS), st.sampled_from(KINDS), TEXTS),
        min_size=1,
        max_size=3,
        unique_by=lambda attribute: (attribute[0], attribute[2]),
    ),
    max_size=18,
)
hosts = st.lists(
    st.sampled_from(["a", "A.b", "*.b", "b.", "1.2.3.4", "x-", "c_d.e"])
    | st.text("ab-._1", min_size=1, max_size=6),
    max_size=18,
)


@pytest.mark.otp
def test_python_and_erlang_agree_about_any_certificate(otp: Otp, agent_ebin: Path, tmp_path: Path) -> None:
    batch: list[x509.Certificate] = []

    @settings(max_examples=300, deadline=None, database=None)
    @given(subjects, hosts)
    def collect(subject: Subject, dns: list[str]) -> None:
        batch.append(certificate(subject, dns, []))

    collect()
    answers = ask_erlang(otp, agent_ebin, tmp_path, batch)
    for each, (names, uris, _) in zip(batch, answers, strict=True):
        assert (tuple(names), tuple(uris)) == (names_of(each), identities_of(each)), each.subject


def ask_erlang(
    otp: Otp, ebin: Path, directory: Path, certificates: Sequence[x509.Certificate]
) -> list[tuple[list[str], list[str], str | None]]:
    """(names, URIs, what is shown) of each, as distsec_identity reads it."""
    given_term: Term = [each.public_bytes(serialization.Encoding.DER) for each in certificates]
    answers = ask_script(otp, ebin, directory, "identity_runner.erlscript", given_term)
    return [
        (
            [name.decode() for name in names],
            [uri.decode() for uri in uris],
            None if shown is None else shown.decode(),
        )
        for names, uris, shown in answers
    ]
