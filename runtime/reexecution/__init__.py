"""Executing recorded segments of a run again, and comparing what comes of it."""
