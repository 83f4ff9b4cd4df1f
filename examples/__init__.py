"""Worked examples; each is run as `python -m examples.NAME` from the repository root.

This file is not empty decoration: some published packages install a top-level `examples`, which would win
over a folder without it.
"""
