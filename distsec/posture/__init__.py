"""`distsec check`: how a cluster, or any BEAM on this host, is set up, and what to do about it.

Two floors. `collect/` reads (files, /proc, sockets, listeners that it knocks at) and makes the values of
`facts`; it decides nothing. `judge/` holds a module for each subject, each with one function from facts to
findings; it reads nothing, so that every verdict can be tried on made-up facts. `check` puts both together.

Whatever is read may be hostile: reads are bounded in size, count and time, texts pass `model.text.escape` in
`finding`, and a cookie is measured where it is read and goes no further. The status of an orchestrator is
handed in by the caller (`cli.check`), who has a control client.
"""
