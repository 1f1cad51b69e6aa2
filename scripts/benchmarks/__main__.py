"""The command `scripts/bench`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import scripts.benchmarks
from scripts.benchmarks.certificates import issue, proof, rotation
from scripts.benchmarks.clusters import directory
from scripts.benchmarks.links import join, throughput
from scripts.benchmarks.mesh import mesh
from scripts.benchmarks.nodes import Release, compile_module, releases
from scripts.benchmarks.orchestration import idle, start, status_time
from scripts.benchmarks.port import port
from scripts.benchmarks.revocation import revocation
from scripts.benchmarks.rows import Row, table

ONCE: dict[str, Callable[[bool], list[Row]]] = {
    "idle": idle,
    "port": port,
    "start": start,
    "status": status_time,
    "issue": issue,
    "rotation": rotation,
}
PER_RELEASE: dict[str, Callable[[Release, Path, bool], list[Row]]] = {
    "join": join,
    "throughput": throughput,
    "mesh": mesh,
    "revocation": revocation,
    "proof": proof,
}


def measure(wanted: Sequence[str], found: Sequence[Release], quick: bool) -> list[Row]:
    rows = []
    with directory() as place:
        beams = compile_module(found, place) if set(wanted) & PER_RELEASE.keys() else place
        for what in wanted:
            if what in ONCE:
                say(what)
                rows += ONCE[what](quick)
                continue
            for release in found:
                say(f"{what}, {release}")
                rows += PER_RELEASE[what](release, beams, quick)
    return rows


def say(what: str) -> None:
    print(f"bench: {what} …", file=sys.stderr, flush=True)


def main() -> None:
    everything = [*ONCE, *PER_RELEASE]
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=scripts.benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", metavar="|".join(everything), help="default: all")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--quick", action="store_true", help="fewer runs, smaller figures")
    parser.add_argument("--otp", default="", help="releases, as 25,29 (default: all that scripts/otp made)")
    options = parser.parse_args()
    if unknown := set(options.what) - set(everything):
        parser.error(f"unknown measurement: {', '.join(sorted(unknown))}")
    only = options.otp.replace(",", " ").split()
    found = [release for release in releases() if not only or str(release.number) in only]
    if not found:
        parser.error("none of these releases is here: scripts/otp makes them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all nodes are ended
    rows = measure(options.what or everything, found, options.quick)
    print(json.dumps({"schema": 1, "rows": [asdict(row) for row in rows]}) if options.json else table(rows))


if __name__ == "__main__":
    main()
