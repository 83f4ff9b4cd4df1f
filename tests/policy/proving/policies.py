"""Small policies in text, for tests that state what is proved of them."""

from __future__ import annotations

from gradwarden.policy import parse_policy
from gradwarden.policy.program import Program

HEAD = """policy small version 1 language 1
examples {
  consent : bool
  private : bool
  kind    : one of a, b, c
  person  : string
  score   : number 0..1
  size    : integer 0..1000000
  erase   : date optional
  tags    : set of x, y
}
signals { loss : number 0..10 default 1 }
model { shallow = top 50%  deep = rest }
"""


def program_of(rules: str) -> Program:
    """The program of a policy over HEAD."""
    return parse_policy(HEAD + rules).program
