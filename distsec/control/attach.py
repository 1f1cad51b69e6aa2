"""How a command becomes the VM of a shell, or a tool, that the orchestrator has prepared. Pure, standard
library only.

The orchestrator answers with the words of a command and a private directory (`beam.shell`); what depends on
the use, the terminal and the operator's language is added here, in the operator's own process.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from distsec.errors import UsageError

EXPRESSION = "expression"
"""In the shell's directory: what `--eval` was given (distsec_shell:evaluate/0)."""

MAX_EXPRESSION_BYTES = 1024 * 1024
"""distsec_shell.erl, MAX_TEXT_BYTES."""

MAX_TIMEOUT_SECONDS = 7 * 24 * 3600
MAX_PROGRAM_CHARACTERS = 64
"""Of a tool's name, which is on record (control.service)."""

_FLAGS = ("ERL_AFLAGS", "ERL_FLAGS", "ERL_ZFLAGS")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""As beam.runtime has it, which is slow to import; a test holds the two together."""


class Use(StrEnum):
    """What a shell is for."""

    TERMINAL = "terminal"
    EVALUATE = "evaluate"
    LINES = "lines"


def use_words(use: Use, node: str, *, timeout_seconds: int, prompt: bool) -> list[str]:
    """What is added to the command. `timeout_seconds`: for the value of an expression, 0 for ever; `prompt`:
    somebody watches the lines. `node` is for whoever looks at the list of processes.
    """
    words = ["-distsec_shell", str(timeout_seconds), "prompt" if prompt else "silent"]
    match use:
        case Use.TERMINAL:  # +Bc: Ctrl-C interrupts the evaluation, and not the VM (erl(1))
            words += ["+Bc", "-user", "distsec_shell"]
        case Use.EVALUATE:
            words += ["+Bd", "-noinput", "-s", "distsec_shell", "evaluate"]
        case Use.LINES:
            words += ["+Bd", "-noshell", "-s", "distsec_shell", "lines"]
    return [*words, "-extra", node]


def environment(directory: str, operator: Mapping[str, str], term: str | None) -> dict[str, str]:
    """The whole environment of a shell's VM. Of the `operator`'s own PATH is taken, and the language where it
    is one of UTF-8: neither ERL_FLAGS nor ~/.erlang reach it. `term`: the type of the terminal, if any.
    """
    language = next((operator[key] for key in ("LC_ALL", "LC_CTYPE", "LANG") if operator.get(key)), "")
    utf8 = language.lower().replace("-", "").endswith("utf8")
    made = {
        "PATH": operator.get("PATH") or DEFAULT_PATH,
        "HOME": directory,
        "LC_ALL": language if utf8 else "C.UTF-8",
        "ERL_CRASH_DUMP_SECONDS": "0",  # none: it would hold the shell's key
    }
    return made if term is None else {**made, "TERM": term}


def tool_environment(given: Mapping[str, str], operator: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a tool: the `operator`'s own, and over it what the orchestrator has `given`.

    Flags of the operator's for every Erlang VM would come on top of those that guard this one.
    """
    own = {name: value for name, value in operator.items() if name not in _FLAGS}
    return {**own, "ERL_CRASH_DUMP_SECONDS": "0", **given}


def check_expression(text: str) -> bytes:
    """The bytes of an expression. Raises UsageError."""
    try:
        octets = text.encode()
    except UnicodeEncodeError:
        raise UsageError("the expression is not UTF-8") from None
    if not octets.strip():
        raise UsageError("the expression is empty", do="write one, as in --eval 'node().'")
    if len(octets) > MAX_EXPRESSION_BYTES:
        raise UsageError(f"the expression has {len(octets)} bytes, and {MAX_EXPRESSION_BYTES} are the most")
    return octets
