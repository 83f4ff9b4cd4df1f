"""What a loop does by habit that was written without a governor: it is refused, and told what to do."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from gradwarden.policy import parse_policy
from gradwarden.runtime.errors import ExampleError, LedgerError, MaskError, RuntimeGovernanceError
from gradwarden.runtime.governor import Governor
from gradwarden.runtime.ledger.ledger import Ledger


@pytest.fixture(params=["fused", "split"])
def governor(lab: Any, request: pytest.FixtureRequest) -> Any:
    return lab.governor(engine=request.param)


def weights(governor: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in governor.model.parameters()]


def same(governor: Any, before: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, weights(governor), before))


def test_the_optimizer_may_not_step_before_the_gates(lab: Any, governor: Any) -> None:
    before = weights(governor)

    def habit() -> None:
        with governor.step(lab.batch("ab")) as proposal:
            proposal.backward(lab.losses(governor.model, lab.inputs(2)))
            governor.optimizer.step()

    with pytest.raises(MaskError, match="while a step is open"):
        habit()
    assert same(governor, before)
    assert lab.step(governor, lab.batch("ab")).committed


def test_the_optimizer_may_not_take_a_step_twice(lab: Any, governor: Any) -> None:
    assert lab.step(governor, lab.batch("ab")).committed
    before = weights(governor)
    with pytest.raises(MaskError, match="the same gradient once more"):
        governor.optimizer.step()
    assert same(governor, before)


def test_a_step_on_a_gradient_that_was_written_over_is_told_what_to_do(lab: Any, governor: Any) -> None:
    """Whether what is there now holds something of the governor's gradient, nobody can tell."""
    assert lab.step(governor, lab.batch("ab")).committed
    before, optimizer = weights(governor), governor.optimizer
    optimizer.zero_grad(set_to_none=False)
    lab.losses(governor.model, lab.inputs(2)).sum().backward()
    with pytest.raises(MaskError, match="or what was written over it") as raised:
        optimizer.step()
    assert "zero_grad(set_to_none=True)" in str(raised.value.help)
    assert same(governor, before)
    optimizer.zero_grad(set_to_none=True)
    lab.losses(governor.model, lab.inputs(2)).sum().backward()
    optimizer.step()
    assert not same(governor, before)


def test_the_optimizer_is_free_again_when_the_run_is_over(lab: Any, governor: Any) -> None:
    assert lab.step(governor, lab.batch("ab")).committed
    before = weights(governor)
    governor.close()
    governor.optimizer.step()
    assert not same(governor, before)


def test_another_run_may_go_on_with_the_optimizer(lab: Any) -> None:
    """As after a crash, where nothing was closed."""
    first = lab.governor()
    assert lab.step(first, lab.batch("ab")).committed
    first.engine.close()
    first.ledger.close()
    with lab.governor(model=first.model, optimizer=first.optimizer) as second:
        assert lab.step(second, lab.batch("ab")).committed


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_that_are_dropped_in_a_step_refuse_it(
    lab: Any, governor: Any, parts: int, to_none: bool
) -> None:
    before = weights(governor)
    with governor.step(lab.batch("abab")) as proposal:
        for part in proposal.micro_batches(4 // parts):
            proposal.backward(lab.losses(governor.model, lab.inputs(4)[part]))
            if part.start == 0:
                governor.optimizer.zero_grad(set_to_none=to_none)
    assert proposal.refusal is not None
    assert "leave `zero_grad` out" in proposal.refusal.detail
    assert same(governor, before)


def test_gradients_that_are_written_over_in_a_step_are_not_dropped(lab: Any, governor: Any) -> None:
    """Nor are those that are zero of themselves."""
    model = governor.model
    with governor.step(lab.batch("abab")) as proposal:
        for part in proposal.micro_batches(2):
            losses = lab.losses(model, lab.inputs(4)[part])
            proposal.backward(losses if part.start else 0.0 * losses)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert proposal.committed


def test_gradients_that_are_zero_and_were_scaled_are_not_said_to_be_dropped(lab: Any, governor: Any) -> None:
    """Nobody can tell them from those that `zero_grad` wrote zeros over."""
    with governor.step(lab.batch("ab")) as proposal:
        proposal.backward(0.0 * lab.losses(governor.model, lab.inputs(2)))
        torch.nn.utils.clip_grad_norm_(governor.model.parameters(), 1.0)
    assert proposal.refusal is not None
    assert proposal.refusal.detail.startswith("gradients were written in the step and all of those are zero")
    assert proposal.refusal.detail.endswith("scale none that are zero")


def test_a_gradient_of_few_rows_that_is_dropped_refuses_the_step(lab: Any) -> None:
    table = torch.nn.Embedding(8, 4, sparse=True, dtype=torch.float64)
    model = torch.nn.Sequential(table, torch.nn.Flatten(), torch.nn.Linear(8, 1, dtype=torch.float64))
    governor = lab.governor(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with governor.step(lab.batch("ab")) as proposal:
        proposal.backward(model(torch.tensor([[1, 2], [3, 1]])).squeeze(1).square())
        table.zero_grad(set_to_none=False)
    assert proposal.refusal is not None
    assert "leave `zero_grad` out" in proposal.refusal.detail


def test_a_step_that_was_not_entered_says_so(lab: Any, governor: Any) -> None:
    proposal = governor.step(lab.batch("ab"))
    with pytest.raises(MaskError, match="was not entered"):
        proposal.backward(lab.losses(governor.model, lab.inputs(2)))


def test_losses_that_are_no_tensor_are_told_as_such(lab: Any, governor: Any) -> None:
    with pytest.raises(MaskError, match="not a `list`"), governor.step(lab.batch("ab")) as proposal:
        proposal.backward([0.5, 0.25])


def test_a_signal_with_a_typing_error_is_not_taken_for_its_default(lab: Any) -> None:
    policy = lab.policy + "signals { fatigue : number 0..1 default 0 }\n"
    policy += "modulate tired { scale deep by fatigue from 1 to 0 }\n"
    governor = lab.governor(policy)
    with pytest.raises(ExampleError, match="declares no signal `fatige`") as raised:
        lab.step(governor, lab.batch("ab"), signals={"fatige": 1.0})
    assert raised.value.help == "did you mean `fatigue`?"


def test_a_policy_in_the_place_of_a_program_is_told_as_such(lab: Any) -> None:
    governor = lab.governor()
    model, optimizer, ledger = governor.model, governor.optimizer, governor.ledger
    with pytest.raises(MaskError, match="this is a `Policy`"):
        Governor(parse_policy(lab.policy), model, optimizer, ledger=ledger)  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match="is not an open one"):
        Governor(governor.program, model, optimizer, ledger="run.ledger")  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"import torch\n", b"no newline", b"\x00abc"[1:], b"{}\n"])
def test_a_file_that_is_no_ledger_is_left_as_it_is(tmp_path: Path, run_signer: Any, content: bytes) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="is no ledger, and is left as it is"):
        Ledger.open(path, run_signer)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["train.py"]


def test_a_checkpoint_where_there_is_no_folder_says_so(lab: Any, tmp_path: Path) -> None:
    governor = lab.governor()
    with pytest.raises(RuntimeGovernanceError, match=r"nowhere.*No such file or directory"):
        governor.checkpoint(tmp_path / "nowhere" / "w.safetensors")
    assert lab.step(governor, lab.batch("ab")).committed


def test_others_may_read_a_checkpoint_as_any_file_that_is_written(lab: Any, tmp_path: Path) -> None:
    governor = lab.governor()
    governor.checkpoint(tmp_path / "w.safetensors")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("[wo]*")}
    assert len(modes) == 1
