"""The language server: findings, hover, completion and edits as an author types."""
