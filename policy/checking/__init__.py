"""Names, types and rules: from a syntax tree to a typed policy, or to every diagnostic at once."""
