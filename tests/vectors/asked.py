"""What Erlang answers: a script of this directory is run once, over all questions."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from distsec.beam.erlang_text import Term, erlang_string, erlang_term
from distsec.beam.term import decode
from tests.releases import Otp

HERE = Path(__file__).resolve().parent


def ask_script(otp: Otp, ebin: Path, directory: Path, script: str, given: Term) -> list[Any]:
    """The answers that `script` writes as `{packet,4}` frames; what it is given is bound to `In`, by file."""
    source, sink = directory / "in.term", directory / "out.frames"
    source.write_text(erlang_term(given) + ".\n")
    name, inward, outward = (erlang_string(str(path)) for path in (HERE / script, source, sink))
    run = f"file:script({name}, [{{'In', {inward}}}, {{'Out', {outward}}}])"
    finished = subprocess.run(
        [otp.erl, "-noinput", "-pa", str(ebin), "-eval", f"{{ok, _}} = {run}, halt()."],
        env={"PATH": os.defpath, "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return [decode(frame) for frame in frames(sink.read_bytes())]


def frames(stream: bytes) -> list[bytes]:
    """The payloads of `{packet,4}` frames."""
    found: list[bytes] = []
    while stream:
        length = int.from_bytes(stream[:4])
        found.append(stream[4 : 4 + length])
        stream = stream[4 + length :]
    return found
