"""Keys, certificates, and the state directory that they are kept in.

    files.py      create and replace files atomically, relative to an open directory
    store.py      the state directory: the only writer of keys, and the one place that checks modes and owners
    profile.py    what a CA and a leaf certificate look like (pure)
    authority.py  the CA: issues a node's key and certificate
    signing.py    the key that signs policies
    cookies.py    distribution cookies, derived from one secret

Does not live here: what the nodes' files contain beyond keys and certificates (`beam.provision`), and who is
allowed (`core`). `beam.provision`, the command line and `check` call it. Time is an argument, in Unix
seconds.
"""
