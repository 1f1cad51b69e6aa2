"""The OTP releases that the tests run on, as scripts/otp lists them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Otp:
    """An Erlang/OTP to test with; `stands_for` is the proven release it was made for (see scripts/otp)."""

    release: int
    stands_for: int
    proven: bool
    erl: str
    erlc: str
    origin: str

    def __str__(self) -> str:
        return f"otp{self.release}"


def _present() -> tuple[Otp, ...]:
    """Reads files only. DISTSEC_OTP=25,27 in the environment limits it."""
    listed = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "otp"), "--list", "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    only = {int(release) for release in os.environ.get("DISTSEC_OTP", "").replace(",", " ").split()}
    found = (Otp(**entry) for entry in json.loads(listed.stdout))
    return tuple(otp for otp in found if not only or otp.release in only)


OTPS = _present()
