"""One training step, from its admission to its outcome."""
