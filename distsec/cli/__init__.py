"""The command line: one module a command, none of them imported before its command runs.

    group.py       the group `distsec`: the table of commands, errors on one line, exit codes
    options.py     `-c`, `--debug`, and how a command finds the orchestrator
    progress.py    a line on the terminal while something takes longer than a second
    passphrases.py, ca_place.py    for commands that use the CA themselves: its place, and what opens its key
    nodes.py, policy.py, status.py, events.py, env.py, init.py, tls.py, run.py, certs/    the commands
    health.py      what is wrong with a status document, and which exit code that is (pure)
    status_view.py, status_words.py    how it looks (pure)

Does not live here: any knowledge of nodes or policies. `init` and `run` call what is below; all other
commands ask the orchestrator through `control.client`. What comes from elsewhere is shown as text, escaped,
never as markup.
"""

from distsec.cli.group import main

__all__ = ["main"]
