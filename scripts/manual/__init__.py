"""Manual pages and shell completions, made from the command line itself: see __main__.py."""
