"""Trust policies are those of C2SP tlog-policy."""

from __future__ import annotations

from itertools import combinations, count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import EvidenceError
from gradwarden.runtime.evidence.trust import NOBODY, Quorum
from gradwarden.runtime.evidence.trust_policy import parse_trust_policy
from gradwarden.runtime.ledger.cosignature import witness_key
from gradwarden.runtime.ledger.keys import Signer

LOG = Signer.generate("log").public
SIGNERS = {name: Signer.generate(f"{name}.example") for name in ("X1", "X2", "X3", "Y1", "Y2", "Y3")}
KEYS = {name: witness_key(signer) for name, signer in SIGNERS.items()}
X1, X2, X3 = (KEYS[name].vkey for name in ("X1", "X2", "X3"))
L = f"log {LOG.vkey}\n"

EXAMPLE = f"""\
log {LOG.vkey}

witness X1 {KEYS["X1"].vkey}
witness X2 {KEYS["X2"].vkey}
witness X3 {KEYS["X3"].vkey} https://x3.example/
group X-witnesses 2 X1 X2 X3

witness Y1 {KEYS["Y1"].vkey}
witness Y2 {KEYS["Y2"].vkey}
witness Y3 {KEYS["Y3"].vkey}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""
"""The example of the specification, section "Example policy"."""


def test_the_example_of_the_specification() -> None:
    trust = parse_trust_policy(EXAMPLE.encode())
    assert trust.keys == (LOG,)
    assert set(trust.witnesses) == set(KEYS.values())
    for size in range(7):
        for names in combinations(KEYS, size):
            enough = sum(name[0] == "X" for name in names) >= 2 and any(name[0] == "Y" for name in names)
            assert trust.quorum.met([KEYS[name] for name in names]) == enough


def test_white_space_and_comments_are_passed_over() -> None:
    spread = "# who\n\t \n" + EXAMPLE.replace(" ", " \t ").replace("\n", "  \n  # none\n") + "#"
    assert parse_trust_policy(spread.encode()) == parse_trust_policy(EXAMPLE.encode())


def test_no_witness_and_one() -> None:
    assert parse_trust_policy(f"{L}quorum none\n".encode()).quorum == NOBODY
    one = parse_trust_policy(f"{L}witness é {X1}\nquorum é".encode())
    assert one.quorum == Quorum(1, (KEYS["X1"],))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no `quorum`"),
        ("quorum none\n", "names no log"),
        (L, "no `quorum`"),
        (f"{L}quorum none\nquorum none\n", "line 3 .* quorum already"),
        (f"{L}quorum a\n", "line 2 .* no witness and no group `a`"),
        (f"{L}quorum a\nwitness a {X1}\n", "no group `a`"),
        (f"{L}{L}quorum none\n", "line 2 .* twice"),
        (f"{L}witness a {X1}\nwitness a {X2}\n", "line 3 .* name `a` is taken"),
        (f"{L}witness none {X1}\n", "name `none` is taken"),
        (f"{L}witness a {X1}\nwitness b {X1}\n", "another witness"),
        (f"{L}witness a {LOG.vkey}\n", "no witness's"),
        (f"log {X1}\n", "a witness's"),
        (f"{L}witness a {X1}\ngroup g 2 a\n", "up to 1"),
        (f"{L}witness a {X1}\ngroup g 0 a\n", "up to 1"),
        (f"{L}witness a {X1}\ngroup g 01 a\n", "up to 1"),
        (f"{L}witness a {X1}\ngroup g all\n", "should read"),
        (f"{L}witness a {X1}\ngroup g all none\n", "no group `none`"),
        (f"{L}witness a {X1}\ngroup g all g\n", "no group `g`"),
        (f"{L}witness a {X1}\ngroup g all a a\n", "a member of a group already"),
        (f"{L}witness a {X1}\ngroup g all a\ngroup h all a\n", "a member of a group already"),
        (f"{L}witness a {X1}\ngroup a all a\n", "name `a` is taken"),
        (f"{L}Quorum none\n", "`Quorum` is not"),
        (f"{L}quorum none\r\n", "control characters"),
        (f"{L}quorum none none\n", "should read"),
        (f"{L}witness a\n", "should read"),
        (f"log {LOG.vkey}x\nquorum none\n", "line 1"),
    ],
    ids=count(),  # keys are drawn anew in every process
)
def test_what_the_specification_does_not_allow_is_refused(text: str, told: str) -> None:
    with pytest.raises(EvidenceError, match=told):
        parse_trust_policy(text.encode())


@given(
    st.lists(st.sampled_from([*EXAMPLE.encode().split(b"\n"), b"quorum none"]), max_size=14),
    st.binary(max_size=20),
)
def test_any_lines_are_a_policy_or_refused(lines: list[bytes], more: bytes) -> None:
    for text in (b"\n".join(lines), b"\n".join(lines) + more):
        try:
            trust = parse_trust_policy(text)
        except EvidenceError:
            continue
        assert trust.keys == (LOG,)
        assert trust.quorum.met(trust.witnesses)
