"""Data package: the standard library of ready policies."""
