"""A run that goes back to earlier weights keeps all steps, and says which of them it abandons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model

from gradwarden.runtime.archiving import archive_ledger
from gradwarden.runtime.average import GovernedAverage
from gradwarden.runtime.errors import LedgerError, MaskError
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules
from gradwarden.runtime.records.branches import Branches, Spans, beyond, length
from gradwarden.runtime.records.effective_history import effective_history
from gradwarden.runtime.records.history import read_history
from gradwarden.runtime.records.known_weights import KnownWeights

LIMITED = "retain few { when kind == a  at most 3 exposures }\n"


def crash(lab: Any, keep: int) -> None:
    """Leave the first `keep` steps of the run, the last of them without an outcome, and no head."""
    place = [index for index, entry in enumerate(lab.entries()) if entry.kind == "step"][keep - 1]
    lines = lab.path().read_bytes().splitlines(keepends=True)
    lab.path().write_bytes(b"".join(lines[: place + 1]))
    Path(f"{lab.path()}.head").unlink(missing_ok=True)


def restored(lab: Any, name: str) -> Any:
    model = lab.model()
    load_model(model, lab.folder / name)
    return model


def crashed(lab: Any, policy: str | None = None) -> None:
    """Save after 2 steps, crash in step 4."""
    governor = lab.governor(policy or lab.policy)
    for step in range(5):
        if step == 2:
            governor.checkpoint(lab.folder / "two.safetensors")
        lab.step(governor, lab.batch("ab"), seed=step)
    lab.close()
    crash(lab, 5)


def test_after_a_crash_the_steps_since_the_checkpoint_are_marked_as_abandoned(lab: Any) -> None:
    crashed(lab)
    with lab.governor(model=restored(lab, "two.safetensors")) as governor:
        assert (governor.next_step, governor.effective_steps) == (5, 5)
        governor.rewind(lab.folder / "two.safetensors")
        assert (governor.next_step, governor.effective_steps) == (5, 2)
        lab.step(governor, lab.batch("ab"), seed=2)
        governor.checkpoint(lab.folder / "end.safetensors")
        assert governor.effective_steps == 3
    (body,) = lab.bodies("rewound")
    assert (body["step"], body["abandoned"], body["effective"]) == (5, [[2, 5]], 2)
    assert body["checkpoint"]["file"] == "two.safetensors"
    assert [step["step"] for step in lab.bodies("step")] == [0, 1, 2, 3, 4, 5]
    report = lab.verify(weights=lab.folder / "end.safetensors")
    assert report.ok
    assert report.findings == ()
    facts = report.facts
    assert (facts["effective"], facts["abandoned"], facts["rewinds"]) == ([[0, 2], [5, 6]], 3, 1)


def test_what_abandoned_steps_spent_stays_spent(lab: Any) -> None:
    crashed(lab, lab.policy + LIMITED)
    with lab.governor(lab.policy + LIMITED, model=restored(lab, "two.safetensors")) as governor:
        governor.rewind(lab.folder / "two.safetensors")
        assert lab.step(governor, lab.batch("ab")).decisions[0].verdict == "refuse"
    assert lab.bodies("step")[-1]["exposures"] == [3, 5]
    assert lab.verify().ok


def test_a_privacy_budget_pays_for_abandoned_steps(lab: Any) -> None:
    text = lab.policy + "privacy quiet { when kind == d  within deep  epsilon 1  delta 1e-5  clip 1.0 }\n"
    plan = JointPlan.for_steps(privacy_rules(lab.program(text)), 0.01, 4)
    with lab.governor(text, privacy=plan, normaliser=4.0) as governor:
        governor.checkpoint(lab.folder / "none.safetensors")
        for _ in range(3):
            lab.step(governor, lab.batch("ad"))
        load_model(governor.model, lab.folder / "none.safetensors")
        governor.rewind(lab.folder / "none.safetensors")
        verdicts = [lab.step(governor, lab.batch("ad")).decisions[1].verdict for _ in range(2)]
    assert verdicts == ["limit", "refuse"]
    assert [body["privacy"]["quiet"]["steps"] for body in lab.bodies("committed")] == [1, 2, 3, 4, 4]
    report = lab.verify()
    assert report.ok
    assert (report.facts["effective"], report.facts["abandoned"]) == ([[3, 5]], 3)


def test_a_run_goes_on_behind_archives(lab: Any) -> None:
    pytest.importorskip("zstandard")
    crashed(lab, lab.policy + LIMITED)
    lab.governor(lab.policy + LIMITED)
    lab.close()
    done = archive_ledger(lab.path(), [lab.signer.public])
    assert done.end > 10
    with lab.governor(lab.policy + LIMITED, model=restored(lab, "two.safetensors")) as governor:
        assert (governor.next_step, governor.committed) == (5, 4)
        governor.rewind(lab.folder / "two.safetensors")
        assert lab.step(governor, lab.batch("ab")).decisions[0].verdict == "refuse"
    report = lab.verify()
    assert report.ok
    assert report.facts["abandoned"] == 3


def test_a_run_goes_back_only_to_weights_that_it_saved_and_the_model_holds(lab: Any) -> None:
    governor = lab.governor()
    lab.step(governor, lab.batch("ab"))
    governor.checkpoint(lab.folder / "one.safetensors")
    lab.step(governor, lab.batch("ab"))
    with pytest.raises(LedgerError, match="does not hold"):
        governor.rewind(lab.folder / "one.safetensors")
    foreign = lab.folder / "foreign.safetensors"
    foreign.write_bytes((lab.folder / "one.safetensors").read_bytes() + b"\0")
    with pytest.raises(LedgerError, match="names no checkpoint"):
        governor.rewind(foreign)
    with pytest.raises(LedgerError, match="cannot read"):
        governor.rewind(lab.folder / "missing.safetensors")
    with governor.step(lab.batch("ab")) as proposal:
        with pytest.raises(MaskError, match="cannot go back"):
            governor.rewind(lab.folder / "one.safetensors")
        proposal.backward(lab.losses(governor.model, lab.inputs(2)))
    load_model(governor.model, lab.folder / "one.safetensors")
    governor.rewind(lab.folder / "one.safetensors")
    governor.close()
    assert lab.verify().facts["effective"] == [[0, 1]]


def test_a_run_may_go_back_to_a_branch_that_it_had_abandoned(lab: Any) -> None:
    governor = lab.governor()

    def back(name: str) -> None:
        load_model(governor.model, lab.folder / name)
        governor.rewind(lab.folder / name)

    for step in range(4):
        lab.step(governor, lab.batch("ab"), seed=step)
        governor.checkpoint(lab.folder / f"{step}.safetensors")
    back("1.safetensors")
    lab.step(governor, lab.batch("ab"), seed=9)
    back("3.safetensors")
    lab.step(governor, lab.batch("ab"), seed=10)
    governor.checkpoint(lab.folder / "end.safetensors")
    governor.close()
    assert [body["abandoned"] for body in lab.bodies("rewound")] == [[[2, 4]], [[4, 5]]]
    report = lab.verify()
    assert report.ok
    assert report.facts["effective"] == [[0, 4], [5, 6]]
    found = effective_history(lab.path(), "1.safetensors")
    assert [(one.first, one.last) for one in found.effective] == [(0, 1)]
    found = effective_history(lab.path())
    assert [(one.first, one.last) for one in found.abandoned] == [(4, 4)]
    assert sum(one.outcomes["committed"] for one in found.effective) == 5


def gone_back(lab: Any) -> None:
    """Save after 2 steps, go back to that after 5 without leaving the process."""
    governor = lab.governor()
    for step in range(5):
        if step == 2:
            governor.checkpoint(lab.folder / "two.safetensors")
        lab.step(governor, lab.batch("ab"), seed=step)
    load_model(governor.model, lab.folder / "two.safetensors")
    governor.rewind(lab.folder / "two.safetensors")
    lab.step(governor, lab.batch("ab"))
    governor.close()


FORGERIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another digest": lambda body: body["checkpoint"].update(digest="0" * 64),
    "another file": lambda body: body["checkpoint"].update(file="other.safetensors"),
    "another checkpoint's step": lambda body: body["checkpoint"].update(step=1),
    "fewer abandoned": lambda body: body.update(abandoned=[[3, 5]]),
    "none abandoned": lambda body: body.update(abandoned=[]),
    "more effective": lambda body: body.update(effective=3),
    "another step": lambda body: body.update(step=6),
}


@pytest.mark.parametrize("how", FORGERIES)
def test_a_forged_mark_is_found(lab: Any, how: str) -> None:
    gone_back(lab)

    def forge(entries: list[tuple[str, dict[str, Any]]]) -> None:
        FORGERIES[how](next(body for kind, body in entries if kind == "rewound"))

    assert lab.forge(lambda entries: None, target="same").ok
    report = lab.forge(forge)
    assert report.status == "VIOLATION"
    assert [finding.code for finding in report.findings] == ["wrong_rewind"]
    assert lab.entries("forged")[report.findings[0].index].kind == "rewound"


def test_a_mark_in_the_middle_of_a_step_is_found(lab: Any) -> None:
    gone_back(lab)

    def forge(entries: list[tuple[str, dict[str, Any]]]) -> None:
        place = next(at for at, (kind, _) in enumerate(entries) if kind == "rewound")
        mark = entries.pop(place)
        entries.insert(len(entries) - 2, mark)

    assert "wrong_rewind" in {finding.code for finding in lab.forge(forge).findings}


def test_a_resumed_run_with_earlier_weights_must_say_so(lab: Any) -> None:
    """Neither a step nor a checkpoint is taken, until it does; nothing is written."""
    crashed(lab)
    with lab.governor(model=restored(lab, "two.safetensors")) as governor:
        governor.ledger.flush()
        before = [entry.kind for entry in lab.entries()]
        for _ in range(2):
            with pytest.raises(LedgerError, match=r"saved before step 2.*moved on since") as told:
                lab.step(governor, lab.batch("ab"))
            assert "Governor.rewind" in str(told.value.help)
            with pytest.raises(LedgerError, match="saved before step 2"):
                governor.checkpoint(lab.folder / "again.safetensors")
        governor.ledger.flush()
        assert [entry.kind for entry in lab.entries()][len(before) :] in ([], ["head"])
        governor.rewind(lab.folder / "two.safetensors")
        lab.step(governor, lab.batch("ab"))
    report = lab.verify()
    assert (report.ok, report.findings) == (True, ())


def test_a_resumed_run_holds_the_weights_that_were_saved_last_where_no_step_came_after(
    lab: Any, recwarn: pytest.WarningsRecorder
) -> None:
    governor = lab.governor()
    for step in range(2):
        lab.step(governor, lab.batch("ab"), seed=step)
        governor.checkpoint(lab.folder / f"{step}.safetensors")
    lab.step(governor, lab.batch("C", "x"))  # without consent: it moves nothing
    lab.close()
    again = lab.governor(model=restored(lab, "0.safetensors"))
    with pytest.raises(LedgerError, match=r"saved before step 1 \(`0.safetensors`\)"):
        lab.step(again, lab.batch("ab"))
    lab.close()
    assert not [one for one in recwarn if "were they loaded" in str(one.message)]
    with pytest.warns(UserWarning, match=r"saved last \(`1.safetensors`\).*were they loaded"):
        lab.step(lab.governor(model=lab.model(seed=5)), lab.batch("C", "x"))
    lab.close()
    with lab.governor(model=restored(lab, "1.safetensors")) as last:
        lab.step(last, lab.batch("ab"))
    assert not [one for one in recwarn if "were they loaded" in str(one.message)]


def test_weights_of_which_an_average_was_saved_are_not_missed(
    lab: Any, recwarn: pytest.WarningsRecorder
) -> None:
    """Those of training may be kept elsewhere. The average itself may be gone on from, until a step."""
    governor = lab.governor()
    average = GovernedAverage(governor.model, governor.program.bands, decay=0.5)
    average.update(lab.step(governor, lab.batch("ab")).active)
    with average.applied():
        governor.checkpoint(lab.folder / "average.safetensors")
    trained = governor.model
    lab.close()
    for model in (trained, restored(lab, "average.safetensors")):
        lab.step(lab.governor(model=model), lab.batch("C", "x"))  # without consent: it moves nothing
        lab.close()
    assert not [one for one in recwarn if "were they loaded" in str(one.message)]
    lab.step(lab.governor(model=trained), lab.batch("ab"))
    lab.close()
    again = lab.governor(model=restored(lab, "average.safetensors"))
    with pytest.raises(LedgerError, match=r"saved before step 1.*moved on since"):
        lab.step(again, lab.batch("ab"))


def test_an_average_that_was_gone_back_to_is_what_training_holds(lab: Any) -> None:
    governor = lab.governor()
    average = GovernedAverage(governor.model, governor.program.bands, decay=0.5)
    average.update(lab.step(governor, lab.batch("ab")).active)
    with average.applied():
        governor.checkpoint(lab.folder / "average.safetensors")
    lab.step(governor, lab.batch("ab"))
    lab.close()
    path = lab.folder / "average.safetensors"
    lab.governor(model=restored(lab, path.name)).rewind(path)
    lab.close()
    with (
        pytest.warns(UserWarning, match=r"saved last \(`average.safetensors`\).*were they loaded"),
        lab.governor(model=lab.model(seed=5)) as again,
    ):
        lab.step(again, lab.batch("ab"))


def test_a_step_without_an_outcome_is_not_said_to_have_moved_the_model(lab: Any) -> None:
    governor = lab.governor()
    lab.step(governor, lab.batch("ab"))
    governor.checkpoint(lab.folder / "last.safetensors")
    lab.step(governor, lab.batch("ab"))
    lab.close()
    crash(lab, 2)
    for _ in range(2):
        again = lab.governor(model=restored(lab, "last.safetensors"))
        with pytest.raises(
            LedgerError, match=r"saved before step 1.*no outcome in this ledger, so it may have"
        ):
            lab.step(again, lab.batch("ab"))
        lab.close()


def saved(step: int, root: str) -> tuple[str, dict[str, Any]]:
    tensors = {"chunk": 1, "count": 1, "of": "model", "root": root}
    return "checkpoint", {"step": step, "file": root, "digest": root, "tensors": tensors}


@pytest.mark.parametrize("at_once", [True, False])
def test_steps_that_a_rank_left_out_may_have_moved_the_model(
    at_once: bool, recwarn: pytest.WarningsRecorder
) -> None:
    """at_once: it is resumed beside ranks that have begun more; its ledger says so from then on."""
    known = KnownWeights()
    known.apply(*saved(0, "first"))
    if not at_once:
        known.apply("skipped", {"step": 0, "until": 1})
    known.check("what others made", 1)
    assert not recwarn.list
    with pytest.raises(LedgerError, match="no outcome in this ledger"):
        known.check("first", 1)
    known.apply("skipped", {"step": 0, "until": 1})
    known.apply(*saved(1, "second"))
    known.check("second", 1)
    with pytest.raises(LedgerError, match="moved on since"):
        known.check("first", 1)
    with pytest.warns(UserWarning, match="were they loaded"):
        known.check("another", 1)


@pytest.mark.parametrize("tensors", [{}, {"0.weight": "ab" * 32, "root": "cd" * 32}, None])
def test_weights_whose_tensors_were_not_listed_are_not_known(
    lab: Any, tensors: dict[str, str] | None, recwarn: pytest.WarningsRecorder
) -> None:
    """As in the first form of the format, which gave a digest of each, and before it."""
    lab.step(lab.governor(), lab.batch("ab"))
    lab.close()
    ledger = Ledger.open(lab.path(), lab.signer, durability="os")
    body = {"step": 1, "file": "old.safetensors", "digest": "ef" * 32, "tensors": tensors}
    ledger.append("checkpoint", body)
    ledger.close()
    with lab.governor(model=lab.model(seed=5)) as governor:
        assert lab.step(governor, lab.batch("ab")).committed
    assert not [one for one in recwarn if "were they loaded" in str(one.message)]


def test_weights_that_were_gone_back_to_are_no_earlier_ones(lab: Any) -> None:
    crashed(lab)
    lab.governor(model=restored(lab, "two.safetensors")).rewind(lab.folder / "two.safetensors")
    lab.close()
    with lab.governor(model=restored(lab, "two.safetensors")) as governor:
        lab.step(governor, lab.batch("ab"))
    assert lab.verify().facts["effective"] == [[0, 2], [5, 6]]


def nudged(model: Any) -> Any:
    """Change weights by what nobody would notice, so that no ledger names them."""
    with torch.no_grad():
        weight = next(model.parameters())
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0, dtype=weight.dtype))
    return model


def test_a_restart_that_does_not_say_from_which_weights_is_told(lab: Any) -> None:
    crashed(lab)
    with lab.governor(model=nudged(restored(lab, "two.safetensors"))) as governor:
        lab.step(governor, lab.batch("ab"))
    report = lab.verify()
    assert report.ok
    (finding,) = report.findings
    assert (finding.code, finding.severity) == ("unmarked_restart", "warning")
    assert lab.entries()[finding.index].kind == "resumed"


def test_weights_that_come_back_without_a_mark_are_told(lab: Any) -> None:
    with lab.governor() as governor:
        governor.checkpoint(lab.folder / "none.safetensors")
        lab.step(governor, lab.batch("ab"))
        load_model(governor.model, lab.folder / "none.safetensors")
        governor.checkpoint(lab.folder / "again.safetensors")
    (finding,) = lab.verify().findings
    assert finding.code == "unmarked_restart"
    assert "step 1 are those saved at step 0" in finding.message


def test_a_restart_right_at_a_checkpoint_needs_no_mark(lab: Any) -> None:
    governor = lab.governor()
    lab.step(governor, lab.batch("ab"))
    governor.checkpoint(lab.folder / "one.safetensors")
    lab.close()
    with lab.governor(model=restored(lab, "one.safetensors")) as again:
        lab.step(again, lab.batch("ab"))
    assert lab.verify().findings == ()


def test_a_resumed_run_knows_what_it_had_abandoned(lab: Any) -> None:
    crashed(lab)
    governor = lab.governor(model=restored(lab, "two.safetensors"))
    governor.rewind(lab.folder / "two.safetensors")
    lab.step(governor, lab.batch("ab"))
    lab.close()
    with lab.governor(model=governor.model) as again:
        assert (again.next_step, again.effective_steps) == (6, 3)
    assert read_history(str(lab.path()), len(lab.entries())).effective == ((0, 2), (5, 6))


# --- the law: a fold over a tree gives what walking it gives ------------------------------------------------


@given(st.lists(st.one_of(st.just("step"), st.just("save"), st.integers(0, 5)), max_size=40))
def test_the_history_of_weights_is_the_way_that_led_to_them(moves: list[str | int]) -> None:
    """A slow walk keeps, for each checkpoint, the list of all steps before it."""
    branches, step = Branches(), 0
    way: list[int] = []
    saved: list[tuple[Any, list[int]]] = []
    for number, move in enumerate(moves):
        if move == "step":
            way.append(step)
            step += 1
        elif move == "save":
            body = {"step": step, "file": f"{number}.safetensors", "digest": f"{number:064x}"}
            branches.apply("checkpoint", body)
            saved.append((branches.last, list(way)))
        elif saved:
            target, then = saved[int(move) % len(saved)]
            due = branches.rewind(target, step)
            assert steps_of(due["abandoned"]) == [one for one in way if one not in then]
            assert due["effective"] == len(then)
            branches.apply("rewound", due)
            way = list(then)
        assert steps_of(branches.leading(step)) == way
        assert length(branches.leading(step)) == len(way)
    for target, then in saved:
        assert steps_of(target.leading) == then


def steps_of(spans: Any) -> list[int]:
    return [step for first, end in spans for step in range(first, end)]


def test_histories_share_how_they_begin() -> None:
    history: Spans = ((0, 4), (6, 9))
    assert beyond(history, ((0, 4),)) == ((6, 9),)
    assert beyond(history, ((0, 2),)) == ((2, 4), (6, 9))
    assert beyond(history, history) == ()
    assert beyond(history, ((0, 4), (6, 7), (11, 12))) == ((7, 9),)


def test_the_weights_are_compared_bit_by_bit(lab: Any) -> None:
    governor = lab.governor()
    lab.step(governor, lab.batch("ab"))
    governor.checkpoint(lab.folder / "one.safetensors")
    lab.step(governor, lab.batch("ab"))
    load_model(governor.model, lab.folder / "one.safetensors")
    with torch.no_grad():
        weight = governor.model[0].weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0, dtype=weight.dtype))
    with pytest.raises(LedgerError, match=r"0\.weight"):
        governor.rewind(lab.folder / "one.safetensors")
