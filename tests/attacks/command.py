"""`scripts/attack`: tries the catalogue on managed nodes, on the comparison, or on a cluster of the
operator's own.

    scripts/attack                                   every attack, 500 times, on each release that is here
    scripts/attack --list                            what there is, and what each attack needs
    scripts/attack --attack relay_in --attempts 50 --carrier distsec --carrier stock --otp 27
    scripts/attack --json > board.json               one document: see docs/attack-board.md
    scripts/attack --markdown board.json … > docs/attack-board.md
    scripts/attack --target 10.0.0.5:9100 --node poller@10.0.0.5 --confirm-own …

For a cluster of the operator's own: what the victim did is seen from outside. An attack tries to have the
victim call back to this host; nothing else is needed of the victim than its address and name. More can be
tried with more:
  --ca FILE --ca-key FILE            the cluster's CA: every kind of certificate is issued with it
  --certificate FILE --key FILE      a listed node's own, with its name as the first --listed
  --listed NODE                      names that the victim lists; nobody is asked whether it does
  --cookie-file FILE                 what one node that was taken over knows: a cookie, or `NODE COOKIE` lines
  --config FILE                      distsec.toml of that cluster, on its own host: events are counted too
Attacks that take what is not there are left out, and said so.

Exit codes: 0 nobody got in · 1 something was executed or a link came up · 64 wrong usage · 69 a target
cannot be had.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from tests.attacks.board import Row, document, heading, line, page, row
from tests.attacks.catalogue import BY_NAME, CATALOGUE
from tests.attacks.catalogue.attack import Attack, Progress, carry_out
from tests.attacks.targets import Witness
from tests.attacks.targets.guarded import Guarded
from tests.attacks.targets.plain import Plain
from tests.attacks.targets.rabbit import Missing, Rabbit
from tests.attacks.targets.remote import Credentials, Remote
from tests.releases import OTPS, ROOT, Otp
from tests.system.beam_control import BEAM_SOURCES

USAGE, UNAVAILABLE = 64, 69
ATTEMPTS = 500
SECONDS_PER_ATTACK = 600.0

CARRIERS: dict[str, Callable[[Otp, Path], Witness]] = {
    "distsec": lambda otp, beams: Guarded(otp, beams, "distsec"),
    "inet_tls": lambda otp, beams: Guarded(otp, beams, "inet_tls"),
    "stock": Plain,
    "rabbitmq": Rabbit,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    if options.list:
        _list()
        return 0
    if options.markdown:
        return _markdown(options.markdown)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends with us
    chosen = tuple(BY_NAME[name] for name in options.attack) if options.attack else CATALOGUE
    rows: list[Row] = []
    try:
        with ExitStack() as stack:
            beams = _beams(stack)
            for target in _targets(options, beams, stack):
                rows += _board(target, chosen, options)
                target.close()
    except (Missing, OSError) as error:
        print(f"scripts/attack: {error}", file=sys.stderr)
        return UNAVAILABLE
    if options.json:
        print(json.dumps(document(rows), indent=1))
    return 1 if any(each.got_in for each in rows) else 0


def _board(target: Witness, chosen: Sequence[Attack], options: argparse.Namespace) -> list[Row]:
    """Every attack on one target, each told as soon as it is over."""
    out = sys.stderr if options.json else sys.stdout
    print(heading(target.carrier, target.otp), file=out, flush=True)
    rows = []
    for attack in chosen:
        if missing := _missing(attack, target, bool(options.attack)):
            print(f"{attack.name:<23} left out: {missing}", file=out, flush=True)
            continue
        target.begin()
        outcome = carry_out(attack, target, options.attempts, _progress(attack), options.seconds)
        made = row(outcome, target.carrier, target.otp, target.nodeups(), target.evidence())
        _clear()
        print(line(made), file=out, flush=True)
        rows.append(made)
    return rows


def _missing(attack: Attack, target: Witness, by_name: bool) -> str:
    """Why an attack is not tried; "" where it is."""
    if lacking := attack.needs - target.abilities:
        return "it takes " + ", ".join(sorted(lacking))
    if attack.disturbs and isinstance(target, Remote) and not by_name:
        return "it may disturb others: name it with --attack"
    return ""


def _progress(attack: Attack) -> Progress:
    """A line that overwrites itself, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda _done, _of: None
    began = last = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.2:
            last = now
            print(
                f"\r{attack.name:<23} {done} of {of}, {now - began:.0f} s\x1b[K",
                end="",
                file=sys.stderr,
                flush=True,
            )

    return tell


def _clear() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# ---- what is attacked


def _targets(options: argparse.Namespace, beams: Path, stack: ExitStack) -> Iterator[Witness]:
    if options.target:
        remote = _remote(options, beams)
        stack.callback(remote.close)
        yield remote
        return
    for carrier in options.carrier or ["distsec"]:
        for otp in _releases(options.otp):
            if carrier == "rabbitmq" and otp.release != 25:
                continue
            if carrier in {"distsec", "inet_tls"}:
                subprocess.run([str(ROOT / "scripts" / "build-agent")], check=True, stdout=sys.stderr)
            made = CARRIERS[carrier](otp, beams)
            stack.callback(made.close)
            yield made


def _releases(wanted: Sequence[int]) -> tuple[Otp, ...]:
    if absent := set(wanted) - {otp.release for otp in OTPS}:
        raise Missing(f"OTP {', '.join(map(str, sorted(absent)))} is not here: scripts/otp makes it")
    return tuple(otp for otp in OTPS if not wanted or otp.release in wanted)


def _remote(options: argparse.Namespace, beams: Path) -> Remote:
    host, _, port = options.target.rpartition(":")
    credentials = Credentials(
        options.trust_domain,
        tuple(options.listed),
        options.ca,
        options.ca_key,
        options.certificate,
        options.key,
        _cookies(options.cookie_file),
    )
    return Remote(
        (host.strip("[]"), int(port)),
        options.node,
        credentials,
        carrier=(options.carrier or ["unknown"])[0],
        otp=str((options.otp or ["unknown"])[0]),
        erlang=OTPS[0] if OTPS else None,
        beams=beams,
        config=options.config,
    )


def _cookies(path: Path | None) -> tuple[tuple[str, str], ...]:
    if path is None:
        return ()
    lines = [text.split() for text in path.read_text().splitlines() if text.strip()]
    return tuple((words[0], words[1]) if len(words) == 2 else ("*", words[0]) for words in lines)


def _beams(stack: ExitStack) -> Path:
    """The tests' own Erlang modules, compiled by the oldest release that is here."""
    directory = Path(tempfile.mkdtemp(prefix="ds"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    if OTPS:
        oldest = min(OTPS, key=lambda otp: otp.release)
        sources = sorted(map(str, BEAM_SOURCES.glob("*.erl")))
        subprocess.run([oldest.erlc, "-o", str(directory), *sources], check=True, timeout=60)
    return directory


# ---- what is said


def _list() -> None:
    for attack in CATALOGUE:
        needs = ", ".join(sorted(attack.needs)) or "nothing"
        print(f"{attack.name:<23} {attack.title}\n{'':23} needs: {needs}")


def _markdown(files: Sequence[Path]) -> int:
    rows = [Row(**each) for file in files for each in json.loads(file.read_text())]
    versions = "Releases: " + ", ".join(
        f"OTP {otp.release} ({otp.origin}{'' if otp.proven else ', unproven'})" for otp in OTPS
    )
    text = page(
        rows,
        {attack.name: f"{attack.title} (`{attack.name}`)" for attack in CATALOGUE},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        versions=versions + ".",
        commands=(
            "scripts/attack --json --attempts 10000 --seconds 15 --otp 25 > distsec-25.json   # and 27, 29",
            "scripts/attack --json --attempts 100 --seconds 5 --carrier stock > stock.json  # and others",
            "scripts/attack --markdown *.json > docs/attack-board.md",
        ),
    )
    print(text, end="")
    return 0


# ---- usage


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"scripts/attack: {message}; see --help", file=sys.stderr)
        raise SystemExit(USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scripts/attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--list", action="store_true", help="say what attacks there are")
    add(
        "--attack",
        action="append",
        choices=sorted(BY_NAME),
        metavar="NAME",
        default=[],
        help="only this one (again and again)",
    )
    add(
        "--attempts",
        type=_positive,
        default=ATTEMPTS,
        metavar="N",
        help=f"per attack and release ({ATTEMPTS})",
    )
    add("--seconds", type=float, default=SECONDS_PER_ATTACK, metavar="S", help="at most per attack (600)")
    add("--carrier", action="append", choices=sorted(CARRIERS), help="what is attacked (distsec)")
    add(
        "--otp",
        action="append",
        type=int,
        default=[],
        metavar="RELEASE",
        help="only this release (again and again)",
    )
    add("--json", action="store_true", help="one JSON document on stdout, the table on stderr")
    add(
        "--markdown",
        nargs="+",
        type=_file,
        metavar="FILE",
        help="make the page of documents that --json printed",
    )
    own = parser.add_argument_group("a cluster of one's own")
    own.add_argument(
        "--target", type=_address, metavar="HOST:PORT", help="where the victim listens for links"
    )
    own.add_argument("--node", metavar="NODE", help="the victim's name")
    own.add_argument(
        "--confirm-own", action="store_true", help="the target is mine to attack (needed beyond loopback)"
    )
    own.add_argument("--ca", type=_file, metavar="FILE")
    own.add_argument("--ca-key", type=_file, metavar="FILE")
    own.add_argument("--certificate", type=_file, metavar="FILE")
    own.add_argument("--key", type=_file, metavar="FILE")
    own.add_argument("--listed", action="append", default=[], metavar="NODE")
    own.add_argument("--cookie-file", type=_file, metavar="FILE")
    own.add_argument(
        "--trust-domain", default="cluster", metavar="NAME", help="the cluster's name in identities"
    )
    own.add_argument("--config", type=_file, metavar="FILE")
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """What argparse cannot say. Ends with USAGE."""
    if options.target is None:
        if any(
            (
                options.node,
                options.ca,
                options.certificate,
                options.listed,
                options.cookie_file,
                options.config,
            )
        ):
            parser.error("credentials are for --target, which is missing")
        return
    if options.node is None or "@" not in options.node:
        parser.error("--target takes --node, the victim's full name")
    if (options.ca is None) != (options.ca_key is None):
        parser.error("--ca and --ca-key go together")
    if (options.certificate is None) != (options.key is None):
        parser.error("--certificate and --key go together")
    if options.certificate and not options.listed:
        parser.error("--certificate takes --listed, whose certificate it is")
    if not options.confirm_own and not _is_loopback(options.target):
        parser.error(f"{options.target} is beyond this host: --confirm-own says that it is yours to attack")


def _is_loopback(target: str) -> bool:
    try:
        return ipaddress.ip_address(target.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:  # a name: whose it is, nobody says
        return False


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file")
    return path


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError("HOST:PORT, an IPv6 address in brackets")
    return text


if __name__ == "__main__":
    sys.exit(main())
