"""Comparisons of compiled programs, over examples and over time."""
