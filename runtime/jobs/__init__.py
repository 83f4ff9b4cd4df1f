"""Jobs: many ranks, each with a ledger of its own, bound by a log of logs. Nothing here imports torch."""
