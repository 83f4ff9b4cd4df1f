"""Findings about policies that compile but may not mean what their authors think, and how to mend them."""
