"""What a run remembers of each example, and what it makes of it."""
