"""Emulator flags that take the guard out of force, found before the node is started. Pure.

The boot guard (`distsec_guard`) stops a node that was given any of them, in the node itself and whatever way
they came. This looks at what can be seen beforehand, the command, ERL_FLAGS, ERL_ZFLAGS and the files that
the command names, so that the operator reads the reason at once instead of after a boot: a second
`-ssl_dist_optfile` for one ends OTP's own start in a crash report, before any code of ours runs
(ssl_dist_sup:start_link/0).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from distsec.model.cookies import PLACEHOLDER
from distsec.model.text import escape

_FORBIDDEN: Mapping[str, str] = {
    "-proto_dist": "distsec chooses the carrier; on OTP 25 a second one listens in plaintext",
    "-ssl_dist_optfile": "distsec writes the TLS options",
    "-ssl_dist_opt": "distsec writes the TLS options",
    "-setcookie": "it shows the cookie to every user of the host, and distsec sets the cookies"
    f" (a script that always gives one can be given {PLACEHOLDER})",
    "-epmd_module": "distsec answers for epmd",
    "-no_epmd": "distsec answers for epmd",
    "-dist_listen": "a node that does not listen cannot be guarded",
    "-detached": "the node would leave its supervisor",
    "-heart": "distsec restarts the node",
}
_NAMES = frozenset({"-name", "-sname"})
_FILES = frozenset({"-args_file", "-vm_args"})
_MAX_DEPTH = 4
_MAX_FILE_BYTES = 1 << 20

ReadFile = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True)
class ForbiddenFlag:
    """`flag` was found in `where` (the command, a variable, a file), and `why` it may not be there."""

    flag: str
    where: str
    why: str
    do: str = "take it out"

    def __str__(self) -> str:
        return f"{escape(self.flag, 40)} in {escape(self.where, 200)}: {self.why}; {self.do}"


def find_forbidden(
    node: str, command: Sequence[str], environment: Mapping[str, str], read_file: ReadFile
) -> ForbiddenFlag | None:
    """The first flag of `node`'s command or environment that may not be there, or None.

    `read_file` gives the bytes of a file that `-args_file` names (None: not there; the emulator will say so).
    A `-name` or `-sname` that is the node's own name is fine.
    """
    found = _scan(node, list(command), "the command", read_file, 0)
    if found is not None:
        return found
    for variable in ("ERL_FLAGS", "ERL_ZFLAGS"):
        if variable in environment:
            words = _words(environment[variable])
            found = _scan(node, words, variable, read_file, 0)
            if found is not None:
                return found
    return None


def find_forbidden_in_vm(node: str, generated: Sequence[str], argv: Sequence[str]) -> ForbiddenFlag | None:
    """The same for the `argv` of a BEAM process, of which the `generated` words are distsec's own.

    erlexec puts the contents of every args_file and variable there, so nothing is hidden. A BEAM without the
    generated words is none of ours to judge (a wrapper's helper), unless it takes a node name.
    """
    own = list(generated)
    rest: list[str] = []
    for word in argv:
        if own and word == own[0]:
            own.pop(0)
        else:
            rest.append(word)
    where = "the flags of the emulator"
    if own:
        named = next((word for word in _before_extra(rest) if word in _NAMES), None)
        if named is None:
            return None
        return ForbiddenFlag(
            named, where, "ERL_AFLAGS, which brings the guard, is missing", "leave it in the environment"
        )
    return _scan(node, rest, where, lambda _: None, 0)


def _before_extra(words: list[str]) -> list[str]:
    return words[: words.index("-extra")] if "-extra" in words else words


def _scan(node: str, words: list[str], where: str, read_file: ReadFile, depth: int) -> ForbiddenFlag | None:
    for index, word in enumerate(words):
        if word == "-extra":
            return None  # what follows is the application's (init, "Command-line flags")
        value = words[index + 1] if index + 1 < len(words) else ""
        if word in _FORBIDDEN and not (word == "-setcookie" and value == PLACEHOLDER):
            return ForbiddenFlag(word, where, _FORBIDDEN[word])
        if word in _NAMES and value != node:
            return ForbiddenFlag(word, where, f"the node is called {node}")
        if word in _FILES and depth < _MAX_DEPTH:
            content = read_file(value)
            if content is not None:
                text = content[:_MAX_FILE_BYTES].decode("utf-8", "replace")
                found = _scan(node, _words(_without_comments(text)), value, read_file, depth + 1)
                if found is not None:
                    return found
    return None


def _without_comments(text: str) -> str:
    return "\n".join(line.split("#", 1)[0] for line in text.splitlines())


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # an unbalanced quote: the emulator will refuse it; look at the plain words meanwhile
        return text.split()
