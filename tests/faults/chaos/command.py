"""`scripts/chaos`: faults at random moments, and what must hold whatever happens.

    scripts/chaos                            ten minutes, five nodes of all releases that are here
    scripts/chaos --minutes 120 --seed 7     longer; the same seed is the same schedule
    scripts/chaos --seed 7 --round 3         that round alone, as often as there is time
    scripts/chaos --plan --seed 7            prints what would be done, and does nothing
    scripts/chaos --json > chaos.json        one document at the end; progress goes to stderr

Faults: kill -9 of nodes and of the orchestrator, restarts of it, SIGSTOP of it for 30 s and of nodes,
connections of agents and between nodes shut from outside, a full disk, certificates, cookies and the CA
rotated, nodes denied and allowed, reloads; several at a time, with four intruders that dial every node all
the while. What must hold is in docs/chaos.md. As root it runs in namespaces of its own; without, it leaves
out what takes them.

Exit codes: 0 everything held · 1 something did not: the seed, what was done and the evidence are printed, the
logs are kept · 64 wrong usage · 69 no OTP release is here, or with CI=true no namespaces · 130, 143
interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tests.faults.chaos import place
from tests.faults.chaos.cluster import ChaosCluster, compile_beams
from tests.faults.chaos.pressure import cpu_seconds
from tests.faults.chaos.run import Run, Violated
from tests.faults.chaos.schedule import plan
from tests.faults.chaos.summary import line, table
from tests.releases import OTPS, Otp

USAGE, UNAVAILABLE = 64, 69
KEPT_BYTES = 2 * 1024 * 1024
"""Of each log, the end of it."""

NODES = 5
PLANNED_ROUNDS = 12
"""That --plan prints: about what ten minutes have time for."""


class Interrupted(BaseException):
    """A signal has asked for the end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    names = [f"n{number}" for number in range(1, options.nodes + 1)]
    if options.plan:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `| head`
        for number in [options.round] if options.round else range(1, PLANNED_ROUNDS + 1):
            print(f"round {number}")
            for fault in plan(options.seed, number, names).faults:
                print(f"  {fault}")
        return 0
    if not place.is_private() and not options.no_namespaces:
        given += [] if "--seed" in given else ["--seed", str(options.seed)]
        code = place.private([sys.executable, "-m", "tests.faults.chaos.command", *given])
        if code is not None:
            return code
        print("scripts/chaos: no namespaces here (root?): no full disk, no cut sockets", file=sys.stderr)
        if os.environ.get("CI") == "true":
            print("scripts/chaos: CI=true, and that is not enough there", file=sys.stderr)
            return UNAVAILABLE
    chosen = [otp for otp in OTPS if not options.otp or otp.release in options.otp]
    if not chosen:
        print("scripts/chaos: no such OTP release is here: scripts/otp makes them", file=sys.stderr)
        return UNAVAILABLE
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _carry_out(options, {name: chosen[i % len(chosen)] for i, name in enumerate(names)})
    except Interrupted as interrupted:
        print(f"scripts/chaos: {interrupted}, ended", file=sys.stderr)
        return 128 + interrupted.number


def _interrupt(number: int, _frame: object) -> NoReturn:
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # the end takes a moment, and is not to be interrupted itself
    raise Interrupted(number)


def _carry_out(options: argparse.Namespace, otps: dict[str, Otp]) -> int:
    out = sys.stderr if options.json else sys.stdout
    began = time.monotonic()

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    def trace(text: str) -> None:
        if options.verbose:
            say(f"  {time.monotonic() - began:6.1f} s  {text}")

    releases = " ".join(f"{name}={otp.release}" for name, otp in otps.items())
    say(f"chaos: seed {options.seed}, {options.minutes:g} minutes, {releases}")
    failure = ""
    with tempfile.TemporaryDirectory(prefix="dsb", dir="/tmp") as beams:
        oldest = min(otps.values(), key=lambda otp: otp.release)
        compile_beams(oldest.erlc, Path(beams))
        run = Run(otps, Path(beams), options.seed, place.is_private(), say, trace)
        try:
            run.start()
            say(f"whole after {time.monotonic() - began:.1f} s; what cannot be had here: {_missing(run)}")
            number = options.round or 1
            while time.monotonic() - began < options.minutes * 60:
                say(line(run, run.round(number)))
                number += 0 if options.round else 1
        except Violated as violated:
            failure = str(violated)
        except Exception:  # the harness could not look: that is no pass
            failure = f"the run itself failed\n{traceback.format_exc()}"
        finally:
            seconds = time.monotonic() - began
            document = _document(options, run, seconds, failure)
            kept = _keep(run.cluster, options, document, failure) if failure else None
            run.close()
    if failure:
        say(_evidence(options, run, failure, kept))
    else:
        say(table(document))
    if options.json:
        print(json.dumps(document))
    return 1 if failure else 0


def _missing(run: Run) -> str:
    return ", ".join(sorted(run.without)) or "nothing"


def _document(options: argparse.Namespace, run: Run, seconds: float, failure: str) -> dict[str, object]:
    try:
        figures = run.figures()
    except Exception:  # an intruder that does not answer any more is no reason to lose the evidence
        figures = {}
    return {
        "schema": 1,
        "ok": not failure,
        "seed": options.seed,
        "seconds": round(seconds, 1),
        "cores": round(cpu_seconds() / seconds, 2) if place.is_private() else None,
        "violation": failure or None,
        **figures,
        "schedule": [each.document() for each in run.plans],
    }


def _evidence(options: argparse.Namespace, run: Run, failure: str, kept: Path | None) -> str:
    rows = [f"\nVIOLATED, seed {options.seed}:", failure, "", "what was done:"]
    for each in run.plans[-2:]:
        rows += [f" round {each.number}", *(f"  {fault}" for fault in each.faults)]
    rows += ["", f"logs, the whole schedule and the evidence: {kept}"]
    number = run.plans[-1].number if run.plans else 1
    rows.append(f"again: scripts/chaos --seed {options.seed} --nodes {options.nodes} --round {number}")
    return "\n".join(rows)


def _keep(
    cluster: ChaosCluster, options: argparse.Namespace, document: dict[str, object], failure: str
) -> Path:
    """Logs and what the witnesses wrote, the end of each; no keys."""
    kept = Path(options.keep or tempfile.gettempdir()) / f"distsec-chaos-{options.seed}"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True, mode=0o700)
    logs = [*cluster.directory.glob("orchestrator-*.log"), *cluster.directory.glob("seen/*.links")]
    logs += cluster.directory.glob("stranger-*/output.log")
    logs += cluster.state.glob("nodes/*/log/output.log*")
    for log in logs:
        name = str(log.relative_to(cluster.directory)).replace("/", "_")
        (kept / name).write_bytes(log.read_bytes()[-KEPT_BYTES:])
    (kept / "evidence.txt").write_text(failure + "\n")
    (kept / "run.json").write_text(json.dumps(document, indent=1) + "\n")
    return kept


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"scripts/chaos: {message}; see --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scripts/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--round", type=int, default=0, metavar="N", help="that round alone, again and again")
    parser.add_argument("--otp", type=_releases, default=[], metavar="25,27", help="releases (all)")
    parser.add_argument("--nodes", type=_nodes, default=NODES, help=f"how many ({NODES})")
    parser.add_argument("--plan", action="store_true", help="print the schedule, and do nothing")
    parser.add_argument("--keep", metavar="DIR", help="where logs go if something did not hold (/tmp)")
    parser.add_argument("--no-namespaces", action="store_true", help="among the other processes of this host")
    parser.add_argument("--verbose", action="store_true", help="each fault as it begins")
    parser.add_argument("--json", action="store_true", help="one document on stdout at the end")
    return parser


def _releases(text: str) -> list[int]:
    return [int(each) for each in text.replace(",", " ").split()]


def _nodes(text: str) -> int:
    number = int(text)
    if not 2 <= number <= 20:
        raise argparse.ArgumentTypeError("2 to 20")
    return number


if __name__ == "__main__":
    sys.exit(main())
