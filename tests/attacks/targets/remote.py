"""A node of somebody's own cluster, by its address alone. What it did is seen from outside: it called
back, or it did not.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.attacks.catalogue.attack import Boot, Need
from tests.releases import Otp
from tests.system.certificates import Leaf, TestAuthority
from tests.system.cluster import COMMAND

LOOK_SECONDS, SETTLE_LOOKS = 5.0, 10
"""Between two looks at the refusals, which nodes tell once a second, on a machine that stands still for some
seconds later; and how many looks until they agree.
"""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the attacker has got hold of. `listed`: the insider's name first, if there is one, then others."""

    trust_domain: str
    listed: tuple[str, ...]
    ca: Path | None = None
    ca_key: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    cookies: tuple[tuple[str, str], ...] = ()
    """(name, cookie); the name "*" stands for all others."""


class Remote:
    """`config`: the cluster's own distsec.toml where its orchestrator is at hand; then events are counted
    too.
    """

    threads = 1  # a name that comes up refuses another of that name: one attempt after the other
    sources: Sequence[str | None] = (None,)

    def __init__(
        self,
        address: tuple[str, int],
        name: str,
        credentials: Credentials,
        *,
        carrier: str,
        otp: str,
        erlang: Otp | None = None,
        beams: Path | None = None,
        config: Path | None = None,
    ) -> None:
        self.carrier, self.otp, self.name = carrier, otp, name
        self._address, self._credentials = address, credentials
        self._erlang, self._beams, self._config = erlang, beams, config
        with socket.create_connection(address, 10) as probe:
            self.local: str = probe.getsockname()[0]
        self.root = Path(tempfile.mkdtemp(prefix="ds"))
        self._leaves: dict[tuple[str, ...], Leaf] = {}
        self._before: Counter[str] = Counter()
        self.abilities = frozenset(self._able())

    def _able(self) -> Iterator[Need]:
        own = self._credentials
        if own.ca and own.ca_key:
            yield Need.CA_KEY
        if (own.certificate and own.key) or (own.ca and own.ca_key and own.listed):
            yield Need.INSIDER
        if own.cookies:
            yield Need.COOKIE
        if self._erlang and self._beams and own.cookies:
            yield Need.BEAM

    # ---- the target

    @property
    def address(self) -> tuple[str, int]:
        return self._address

    @property
    def erlang(self) -> Otp:
        assert self._erlang is not None
        return self._erlang

    def authority(self) -> TestAuthority:
        own = self._credentials
        assert own.ca is not None
        assert own.ca_key is not None
        key = serialization.load_pem_private_key(own.ca_key.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{own.ca_key}: only a CA with an EC key can be used here")
        return TestAuthority(key, x509.load_pem_x509_certificate(own.ca.read_bytes()))

    def leaf(self, *names: str) -> Leaf:
        own = self._credentials
        if names not in self._leaves:
            if Need.CA_KEY in self.abilities:
                made = self.authority().issue(self.directory(), [self.identity(name) for name in names])
            else:
                assert own.certificate is not None
                assert own.key is not None
                serial = x509.load_pem_x509_certificate(own.certificate.read_bytes()).serial_number
                made = Leaf(own.certificate, own.key, own.certificate, f"{serial:x}")
            self._leaves[names] = made
        return self._leaves[names]

    def directory(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.root))

    def identity(self, name: str) -> str:
        head, _, host = name.partition("@")
        return f"spiffe://{self._credentials.trust_domain}/node/{host}/{head}"

    def listed(self, which: int = 0) -> str:
        names = self._credentials.listed
        return names[which] if which < len(names) else f"listed-{which}@{self.name.partition('@')[2]}"

    def cookie(self, name: str) -> str:
        known = dict(self._credentials.cookies)
        return known.get(name, known.get("*", "unknown"))

    def beams(self) -> Path:
        assert self._beams is not None
        return self._beams

    def listed_address(self, which: int = 0) -> tuple[str, int]:
        raise NotImplementedError("nobody may listen for a node of somebody else's cluster")

    def dial(self, name: str, times: int) -> int:
        raise NotImplementedError("nobody tells a remote node to dial")

    def evaluate(self, expressions: str, seconds: float = 30.0) -> str:
        raise NotImplementedError("nobody evaluates anything in a remote node")

    def operate(self, *arguments: str) -> None:
        raise NotImplementedError("an attack changes nobody's policy")

    def boots(self, times: int) -> Generator[Boot, None, None]:
        raise NotImplementedError("nobody starts a remote node")

    # ---- what it saw

    def begin(self) -> None:
        self._before = self._settled()

    def nodeups(self) -> None:
        return None

    def evidence(self) -> Counter[str] | None:
        return self._settled() - self._before if self._config else None

    def _settled(self) -> Counter[str]:
        """The refusals so far, once two looks agree: the connection that looked for the victim is one of
        them.
        """
        now = self._refusals()
        for _ in range(SETTLE_LOOKS if self._config else 0):
            time.sleep(LOOK_SECONDS)
            last, now = now, self._refusals()
            if now == last:
                break
        return now

    def _refusals(self) -> Counter[str]:
        """Of the victim, as `distsec status` counts them. Raises RuntimeError where nobody answers."""
        if self._config is None:
            return Counter()
        done = subprocess.run(
            [*COMMAND, "status", "--json", "-c", str(self._config)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        if done.returncode not in {0, 1, 2} or not done.stdout:
            raise RuntimeError(f"distsec status: {done.stderr.strip()}")
        refusals = json.loads(done.stdout)["refusals"]
        told: Counter[str] = Counter()
        for each in refusals:
            if each["node"] == self.name:
                told[each["reason"]] += each["count"]
        return told

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
