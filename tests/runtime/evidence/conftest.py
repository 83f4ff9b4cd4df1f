"""Ledgers, keys and published vectors, as the tests of the ledger have them."""

from tests.runtime.ledger.conftest import Cases, cases, other, path, sealed, signer, vectors

__all__ = ["Cases", "cases", "other", "path", "sealed", "signer", "vectors"]
