"""Reads the configuration: `find_config`, then `load`. The only reader of the file.

    bytes -> text -> TOML -> ${VAR} -> schema -> checks across keys -> ClusterSpec

Every step adds to one report and goes on with what the one before found sound, so that all problems are told
at once. What was found wrong is replaced by None on the way, which TOML does not have.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distsec.config.binding import Network, settle
from distsec.config.build import build
from distsec.config.check_admission import check_admission
from distsec.config.check_certificates import check_certificates
from distsec.config.check_listeners import check_metrics, check_ports, check_socket_paths
from distsec.config.check_mode import check_carrier, check_mode
from distsec.config.check_nodes import check_families, check_nodes
from distsec.config.check_unbuilt import check_unbuilt
from distsec.config.defaults import cluster_name, state_dir
from distsec.config.interpolate import interpolate
from distsec.config.lines import KeyPath, key_lines
from distsec.config.report import Report
from distsec.config.schema import Document, Security
from distsec.config.source import read_source
from distsec.errors import ConfigError, Problem
from distsec.model.cluster import ClusterSpec

CONFIG_VARIABLE = "DISTSEC_CONFIG"
SEARCHED = (Path("distsec.toml"), Path("/etc/distsec/distsec.toml"))

_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")
_AT_END = " (at end of document)"


def find_config(option: str | None, environment: Mapping[str, str]) -> Path:
    """The absolute path of the file to load: `-c`, else $DISTSEC_CONFIG, else the first there is of SEARCHED.

    A file that was named is not looked for here; `load` says what is wrong with it. Raises ConfigError if
    none was named and there is none.
    """
    named = option or environment.get(CONFIG_VARIABLE)
    if named:
        return Path(named).absolute()
    for candidate in SEARCHED:
        if os.path.lexists(candidate):
            return candidate.absolute()
    looked = " nor ".join(map(str, SEARCHED))
    do = f"create one with `distsec init DIR`, or name it with -c FILE or ${CONFIG_VARIABLE}"
    raise ConfigError("configuration", [Problem("", 0, f"there is neither {looked}", do)])


def load(path: Path, environment: Mapping[str, str], network: Network | None = None) -> ClusterSpec:
    """The cluster that the file at `path` describes, with `environment` for its variables and for the mode,
    and `network` for what the command line says of where to listen.

    Raises ConfigError, whose `problems` are all that is wrong, in file order. What is unsafe but accepted is
    in the spec's `warnings`, what is accepted and does nothing in its `not_enforced`. AddressUnavailable:
    it says `tailscale`, and that has no address now.
    """
    return parse(read_source(path), path.absolute(), environment, network)


def parse(
    text: str, path: Path, environment: Mapping[str, str], network: Network | None = None
) -> ClusterSpec:
    """Like `load`, of a text that stands, or will stand, at the absolute `path`. Reads no file."""
    try:
        raw = _toml(text, path)
        report = Report(key_lines(text))
        tree, origins = interpolate(raw, environment, report.error)
        report.know(tree, origins)
        document = _validated(tree, report)
    except RecursionError:
        raise ConfigError(
            str(path), [Problem("", 0, "is nested too deeply", "is it the right file?")]
        ) from None
    document = settle(document, network or Network(), report)
    mode = check_mode(document.security or Security(), environment, report)
    carrier = check_carrier(document, mode, report)
    check_admission(document, cluster_name(document), report)
    check_nodes(document, report)
    check_families(document, carrier, report)
    check_ports(document, report)
    check_metrics(document, report)
    check_socket_paths(document, state_dir(document, str(path.parent)), report)
    check_certificates(document, report)
    check_unbuilt(document, report)
    if report.failed:
        raise report.failure(str(path))
    return build(document, str(path), mode, carrier, report)


def _toml(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and int()'s own for a number of thousands of digits
        message = str(error)
        found = _AT_LINE.search(message)
        line = int(found[1]) if found else text.rstrip().count("\n") + 1 if message.endswith(_AT_END) else 0
        what = _AT_LINE.sub("", message).removesuffix(_AT_END)
        raise ConfigError(
            str(path), [Problem("", line, f"is no TOML: {what}", "correct it there or shortly before")]
        ) from None


def _validated(tree: Any, report: Report) -> Document:
    """The sound part of the tree: unknown keys are taken out, wrong values become None, until it is valid."""
    while True:
        try:
            return Document.model_validate(tree)
        except ValidationError as failure:
            for error in failure.errors(include_url=False, include_input=False):
                report.from_pydantic(error)
                _take_out(tree, error["loc"], unknown=error["type"] == "extra_forbidden")


def _take_out(tree: Any, path: KeyPath, unknown: bool) -> None:
    for key in path[:-1]:
        tree = tree[key]
        if tree is None:  # a table around it was wrong as well
            return
    if unknown:
        tree.pop(path[-1], None)
    else:
        tree[path[-1]] = None
