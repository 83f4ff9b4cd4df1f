"""Proofs over compiled programs: assertions hold for every example, or a counterexample is given."""
