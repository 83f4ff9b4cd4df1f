"""The signed, hash-chained file: its lines, keys, heads, writing, recovery and the check of its chain.

No torch."""
