"""Evidence that outlives the ledger: proofs, cosignatures, tiles and attestations that others can check.

No torch."""
