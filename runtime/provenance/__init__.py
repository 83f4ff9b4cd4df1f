"""Where what was learned came from: an index made from a ledger, and the questions that it answers.

No torch. Making an index needs pyarrow, asking it duckdb (`gradwarden[trace]`)."""
