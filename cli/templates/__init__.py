"""Data package: what `gradwarden init` scaffolds."""
