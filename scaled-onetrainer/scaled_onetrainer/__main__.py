"""python -m scaled_onetrainer train|doctor|install|check: see each with --help."""
