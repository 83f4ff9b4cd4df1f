"""A band that is given next to no weight starves, too: told or halted for, and opened to nobody."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import StarvationHalt
from gradwarden.runtime.steps.starvation import Reach, StarvationGuard
from tests.runtime.test_governed_privacy import PRIVATE, open_run, patient

# Under the laboratory's policy `a` weighs 1 in `deep`, `d` a quarter, `b` and one without consent nothing.


def guarded(below: str, steps: int = 2, action: str = "accept") -> str:
    return f"starvation deep {{ below {below} after {steps} steps {action} }}\n"


def starved(lab, batches: Sequence[str], policy: str) -> list[int]:
    """The steps after which the guard spoke."""
    with lab.governor(lab.policy + policy) as governor:
        for number, kinds in enumerate(batches):
            assert lab.step(governor, lab.batch(kinds, f"{number}.")).committed
    assert lab.verify().ok
    return [body["step"] for body in lab.bodies("starved")]


def test_a_band_that_is_reached_with_next_to_no_weight_starves(lab):
    thin, fed = "bbbd", "ab"  # 0.0625 and 0.5 on average
    assert starved(lab, [thin, thin, thin, fed, thin, "b", thin], guarded("0.1")) == [1, 5]


def test_without_a_threshold_any_weight_will_do(lab):
    assert starved(
        lab, ["bbbd", "bbbd", "b", "bbbd", "b", "b"], "starvation deep { after 2 steps accept }"
    ) == [5]


@pytest.mark.parametrize(
    ("kinds", "idle"),
    [
        ("dbbbb", False),  # a mean of exactly 0.05 is not below it
        ("dbbbbb", True),
        ("aBBBBBBBBBBBBBBBBBBB", False),
        ("aBBBBBBBBBBBBBBBBBBBB", True),  # examples that may shape nothing count among those of the step
    ],
)
def test_the_mean_is_that_of_all_examples_of_the_step(lab, kinds, idle):
    assert starved(lab, [kinds], guarded("0.05", steps=1).replace("steps", "step")) == ([0] if idle else [])


def test_a_step_in_parts_is_one_step(lab):
    with lab.governor(lab.policy + guarded("0.1", steps=1)) as governor:
        with governor.step(lab.batch("bbbda")) as proposal:
            inputs = lab.inputs(5)
            for rows in proposal.micro_batches(2):
                proposal.backward(lab.losses(governor.model, inputs[rows]))
        assert proposal.committed
    assert lab.bodies("starved") == []


def test_what_starves_is_told_and_opened_to_nobody(lab):
    with lab.governor(lab.policy + guarded("0.1", 1, "report")) as governor:
        with pytest.warns(
            UserWarning, match=r"weighed less than 0.1 on average in the band `deep` for 1 steps"
        ):
            first = lab.step(governor, lab.batch("bbbd"))
        second = lab.step(governor, lab.batch("bbbd"))
    assert first.weights.tolist() == second.weights.tolist() == [[0.5, 0.0]] * 3 + [[0.0, 0.25]]


def test_what_starves_may_halt_the_run(lab):
    def train() -> None:
        with lab.governor(lab.policy + guarded("0.1", 2, "halt")) as governor:
            for _ in range(3):
                lab.step(governor, lab.batch("bbbd"))

    with pytest.raises(StarvationHalt, match=r"less than 0\.1"):
        train()
    assert [body["step"] for body in lab.bodies("committed")] == [0, 1]


def test_refused_steps_are_none_of_those_that_starve(lab):
    with lab.governor(lab.policy + guarded("0.1")) as governor:
        for number in range(3):
            assert lab.step(governor, lab.batch("bbbd", str(number)), scale=float("nan")).refusal
        assert lab.step(governor, lab.batch("bbbd")).committed
    assert lab.bodies("starved") == []


def test_a_band_that_noise_moves_does_not_starve_and_private_examples_are_not_weighed(lab):
    policy = lab.policy + PRIVATE + "starvation shallow { below 1 after 1 step accept }\n" + guarded("0.5")
    governor = open_run(lab, policy)
    for _ in range(2):
        assert lab.step(governor, [lab.example("p", "b"), patient(lab, "x")]).committed
    governor.close()
    assert [(body["step"], body["band"]) for body in lab.bodies("starved")] == [(1, "deep")]
    assert lab.verify().ok


# --- laws ---------------------------------------------------------------------------------------------------

steps = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=30)
"""Of each step, what its examples weigh together, in tenths, and how many they are."""


def spoken(lab, below: int, weighed: Sequence[tuple[int, int]]) -> list[int]:
    threshold = f"below 0.{below} " if below else ""
    guard = StarvationGuard(lab.program(f"{lab.policy}starvation deep {{ {threshold}after 3 steps accept }}"))
    reaches = [Reach(("deep",) if w else (), {"deep": w * 100_000}, count) for w, count in weighed]
    return [step for step, reach in enumerate(reaches) if list(guard.observe(step, reach))]


@given(steps, st.integers(0, 9))
def test_a_guard_speaks_at_the_third_step_of_every_drought(laboratory, weighed, below):
    lab = laboratory(None, None)
    idle = [not w or w < below * count for w, count in weighed]
    runs = [sum(1 for _ in takewhile(bool, reversed(idle[: step + 1]))) for step in range(len(idle))]
    assert spoken(lab, below, weighed) == [step for step, run in enumerate(runs) if run == 3]


@given(steps, st.integers(0, 9), st.integers(0, 9))
def test_a_higher_threshold_speaks_no_later(laboratory, weighed, one, other):
    low, high = sorted((one, other))
    lab = laboratory(None, None)
    first, earlier = (next(iter(spoken(lab, below, weighed)), len(weighed)) for below in (low, high))
    assert earlier <= first
