"""From text to a syntax tree, and from a tree's tokens back to canonical text."""
