"""Deciding a recorded run again, and saying whether it holds. No torch."""
