"""Laws of governed runs, over random policies and batches: what the ledger says is what the program says."""

from __future__ import annotations

import tempfile
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradwarden.policy import Context, Program
from gradwarden.policy.program import Selector
from gradwarden.policy.program_check import program_faults
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.records.recorder import decision_body
from tests.strategies import SIGNALS, TODAY, broken_examples, programs, valid_examples

LAYERS = 4


def chain_of_layers() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layers += [nn.Linear(3, 3), nn.Tanh()]
    return nn.Sequential(*layers).double()


def bound(program: Program) -> Program:
    """Give each band of a generated program layers of the model, the last band what remains.

    Privacy rules are made advisory: what they cost has tests of its own, and accounting is slow.
    """
    last = len(program.bands) - 1
    parameters: list[tuple[str, ...]] = [() for _ in program.bands]
    for layer in range(LAYERS):
        parameters[min(layer, last)] += (f"{2 * layer}.weight", f"{2 * layer}.bias")
    bands = tuple(
        replace(band, selectors=(Selector("rest"),), parameters=tuple(sorted(names)))
        for band, names in zip(program.bands, parameters, strict=True)
    )
    limits = tuple(
        replace(limit, level="advisory") if limit.privacy is not None else limit for limit in program.limits
    )
    return replace(program, bands=bands, limits=limits, model_map="0" * 64)


_signals = st.dictionaries(
    st.sampled_from([spec.name for spec in SIGNALS]), st.floats(-1, 11) | st.just(float("nan")), max_size=2
)


@settings(max_examples=40)
@given(data=st.data())
def test_the_ledger_of_any_run_holds_what_the_program_decides(laboratory, run_signer, data):
    program = bound(data.draw(programs().filter(lambda program: not any(program_faults(program)))))
    pool = data.draw(st.lists(valid_examples() | broken_examples(), min_size=1, max_size=4))
    names = st.integers(0, len(pool) - 1)
    plan = data.draw(
        st.lists(st.tuples(st.lists(names, max_size=5), _signals, st.booleans()), min_size=1, max_size=4)
    )
    with tempfile.TemporaryDirectory() as folder:
        lab = laboratory(Path(folder), run_signer)
        model = chain_of_layers()
        engine = data.draw(st.sampled_from(("fused", "split")))
        governor = lab.governor(program, model=model, engine=engine, clock=lambda: TODAY)
        exposures: list[int] = []
        expected = []
        for step, (batch, signals, fails) in enumerate(plan):
            governor.epoch = step // 2
            before = [exposures.count(name) + batch[:place].count(name) for place, name in enumerate(batch)]
            given_signals = dict(signals)
            if any(spec.name == "loss_ratio" for spec in program.signals):
                given_signals.setdefault("loss_ratio", 1.0)
            decisions = [
                program.decide(pool[name], Context(step, step // 2, TODAY, count, given_signals))
                for name, count in zip(batch, before, strict=True)
            ]
            parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
            with governor.step(
                [(str(name), pool[name]) for name in batch], signals=given_signals
            ) as proposal:
                inputs = torch.randn(len(batch), 3, dtype=torch.float64)
                losses = model(inputs).square().sum(1)
                proposal.token_mask(torch.zeros(len(batch), 1, dtype=torch.long))  # rules may hold some out
                proposal.backward(losses * float("nan") if fails else losses)
            reached = {
                band
                for band, *column in zip(program.band_names, *(d.micro for d in decisions), strict=True)
                if any(column)
            }
            assert proposal.committed == (bool(reached) and not fails)
            moved = reached if proposal.committed else set()
            for band in program.bands:
                for name in band.parameters:
                    same = torch.equal(dict(model.named_parameters())[name], parameters[name])
                    assert same or band.name in moved
            if proposal.committed:
                exposures += [name for name, d in zip(batch, decisions, strict=True) if any(d.micro)]
            expected.append((batch, before, decisions))
        governor.close()
        check_ledger(lab, program, expected, len(exposures))


def check_ledger(lab: Any, program: Program, expected: list[Any], exposed: int) -> None:
    committer = Committer.load(Path(f"{lab.path()}.secret"))
    declared = {d["id"]: d for body in lab.bodies("decisions") for d in body["decisions"]}
    for body, (batch, before, decisions) in zip(lab.bodies("step"), expected, strict=True):
        wanted = b"".join(committer.commit(str(name)) for name in batch)
        assert b64decode(body["commitments"]) == wanted
        assert body["exposures"] in (None, before)
        recorded = [declared[number] for number in body["decision"]]
        assert recorded == [
            {"id": number, **decision_body(decision)}
            for number, decision in zip(body["decision"], decisions, strict=True)
        ]
    report = lab.verify(program=program)
    assert report.ok, report.findings
    assert report.facts["exposures"] == exposed
    assert report.facts["decisions_replayed"] == sum(len(batch) for batch, _, _ in expected)
