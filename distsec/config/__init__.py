"""The configuration: from `distsec.toml` and the environment to one checked, frozen `ClusterSpec`.

    source.py       reads the file, if it is one that may decide which commands run
    lines.py        where each key of a TOML text stands
    interpolate.py  `${VAR}` in string values
    fields.py       what one value may be           schema.py   which keys there are
    check_*.py      what is unsafe, contradictory or not built yet, seen across keys
    defaults.py     what holds where it does not say
    report.py       gathers all that is wrong, in file order
    build.py        makes the ClusterSpec
    load.py         walks through these; the only module that others call, with
    template.py     the commented file that `distsec init` writes

Does not live here: keys, certificates and allotted ports (`pki`, `beam`), and the overlay of `allow` and
`deny`. `daemon`, `cli` and the reload of the supervisor call it. Everything but `source` and `load` is pure.
"""
