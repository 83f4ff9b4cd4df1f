"""Data package: published JSON Schemas."""
