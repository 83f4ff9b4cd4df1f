"""Every assertion of the ready policies is proved, each with a control that is refuted."""

from __future__ import annotations

import pytest

from gradwarden.policy.proving.claims import prove
from tests.policies.composing import POLICIES, shipped

DOCUMENT = POLICIES[0].parents[1] / "docs" / "policies.md"


@pytest.mark.parametrize("name", [path.stem for path in POLICIES])
def test_every_assertion_is_proved(name):
    claims = list(prove(shipped(name), timeout=60))
    assert {claim.assertion.name: claim.outcome for claim in claims if not claim.holds} == {}
    assert claims


def test_the_list_of_policies_names_each():
    listed = DOCUMENT.read_text("utf-8")
    assert [path.stem for path in POLICIES if f"../policies/{path.name})" not in listed] == []
