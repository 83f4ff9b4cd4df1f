"""Weights in files: read without torch, hashed tensor by tensor, named by a ledger and compared with it."""
