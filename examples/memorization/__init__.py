"""Canaries of known repetition in a corpus of code: what a model keeps of them, and what guards prevent."""
