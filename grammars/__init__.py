"""Data package: the grammar of the policy language."""
