"""Completion in bash, zsh and fish, by click's own protocol: the shell's script runs this program.

    distsec stop po<TAB>    →    _DISTSEC_COMPLETE=bash_complete distsec    →    a line for each candidate

Imported only then. A TAB never prints an error: whatever goes wrong, nothing is offered. Two scripts are our
own: bash takes words apart at `@` and `:`, which node names hold, and with click's script nothing is offered
after the `@`; click's for zsh offers nothing at its second call as a function out of fpath. The packages
carry `script(shell)` as files.
"""

from __future__ import annotations

import os
from typing import ClassVar

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

from distsec.cli.group import COMPLETE_VARIABLE

PROGRAM = "distsec"

_BASH = r"""# bash completion for %(prog_name)s

%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} breaks='' cut='' word kind value
    # bash takes words apart at @ and :, which node names hold: the line is handed over as it was typed,
    # and of a candidate only what follows the last of them is handed back
    word=${line##*[[:space:]]}
    [[ $word != --*=* ]] || word=${word#*=}
    [[ $COMP_WORDBREAKS != *@* ]] || breaks+=@
    [[ $COMP_WORDBREAKS != *:* ]] || breaks+=:
    if [[ -n $breaks && $word == *["$breaks"]* ]]; then
        cut=${word%%"${word##*["$breaks"]}"}
    fi
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$cut"}") ;;
        esac
    done < <(env COMP_WORDS="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH = r"""#compdef %(prog_name)s

%(complete_func)s() {
    local -a response plain described
    local kind value text
    (( $+commands[%(prog_name)s] )) || return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT - 1)) \
        %(complete_var)s=zsh_complete %(prog_name)s 2>/dev/null)}")
    for kind value text in "${(@)response}"; do
        case $kind in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain) if [[ $text == _ ]]; then plain+=("$value"); else described+=("$value:$text"); fi ;;
        esac
    done
    (( ! $#described )) || _describe -V unsorted described -U
    (( ! $#plain )) || compadd -U -V unsorted -a plain
}

# As a function out of fpath the file is run at each call; sourced, once.
if [[ $funcstack[1] == _%(prog_name)s ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


class _Quiet(ShellComplete):
    def complete(self) -> str:
        try:
            return super().complete()
        except Exception:
            return ""


class Bash(_Quiet, BashComplete):
    """COMP_WORDS is the whole line up to the cursor, as it was typed."""

    source_template: ClassVar[str] = _BASH

    @staticmethod
    def _check_version() -> None:
        """Whoever makes a package need not have bash."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)[1:]
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        return words, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value}"


class Zsh(_Quiet, ZshComplete):
    source_template: ClassVar[str] = _ZSH


class Fish(_Quiet, FishComplete):
    # a description may hold commas too
    source_template: ClassVar[str] = FishComplete.source_template.replace(
        'string split ","', 'string split --max 1 ","'
    )


SHELLS: dict[str, type[ShellComplete]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}


def register() -> None:
    """From now on click completes with these."""
    for name, shell in SHELLS.items():
        add_completion_class(shell, name)


def script(shell: str, program: click.Command) -> str:
    """What makes `shell` ("bash", "zsh" or "fish") complete the command `distsec`."""
    return SHELLS[shell](program, {}, PROGRAM, COMPLETE_VARIABLE).source()
