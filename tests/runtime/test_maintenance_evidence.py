"""What a ledger says of maintained bands: forgeries are found, and drifts measured from files."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradwarden.runtime.maintenance import Maintainer, Measured
from gradwarden.runtime.verification import drift_measure
from gradwarden.runtime.verification.drift_measure import FAULTS
from gradwarden.runtime.weights.stored import StoredWeights
from tests.runtime.maintained import BOUND, anchor_files, values

# --- forgeries ----------------------------------------------------------------------------------------------

RULES = """
maintain base { within deep  strength 0.5  drift at most 2% }
advisory maintain seen { within shallow  drift at most 1%  from step 1 }
"""


@pytest.fixture
def run(lab: Any) -> Any:
    """A sealed run: four steps, one of them refused; its second band is maintained from step 1 on."""
    governor = lab.governor(lab.policy + RULES)
    for number, kinds in enumerate(("aab", "bb", "cC", "aBd")):
        lab.step(governor, lab.batch(kinds, kinds), seed=number, scale=10.0)
    governor.close()
    assert lab.verify().ok
    return lab


def of(entries: Any, kind: str, number: int = 0) -> dict[str, Any]:
    return [body for k, body in entries if k == kind][number]


def drop(entries: Any, kind: str, number: int = 0) -> None:
    del entries[[index for index, (k, _) in enumerate(entries) if k == kind][number]]


def moved(entries: Any, kind: str, to: str, number: int = 0) -> None:
    """Move an entry behind the first one of another kind."""
    entry = entries.pop([index for index, (k, _) in enumerate(entries) if k == kind][number])
    entries.insert([k for k, _ in entries].index(to) + 1, entry)


def weaker(entries):
    of(entries, "anchored")["strength"] = "0.05"


def unbounded(entries):
    of(entries, "anchored")["drift"] = None


def other_rule(entries):
    of(entries, "anchored")["rule"] = "seen"


def undeclared(entries):
    drop(entries, "anchored")


def undeclared_later(entries):
    drop(entries, "anchored", 1)


def too_early(entries):
    of(entries, "anchored", 1)["step"] = 0
    moved(entries, "anchored", "program", 1)


def again(entries):
    place = [k for k, _ in entries].index("anchored")
    entries.insert(place, copy.deepcopy(entries[place]))


def at_another_step(entries):
    of(entries, "anchored")["step"] = 1


def within_a_step(entries):
    moved(entries, "anchored", "step", 1)


def further(entries):
    of(entries, "maintained")["drift"]["deep"] = "0.0200001"


def unmeasured(entries):
    drop(entries, "maintained")


def half_measured(entries):
    del of(entries, "maintained", 2)["drift"]["shallow"]


def no_number(entries):
    of(entries, "maintained")["drift"]["deep"] = "nan"


def negative(entries):
    of(entries, "maintained")["drift"]["deep"] = "-0.01"


def not_there(entries):
    of(entries, "maintained")["drift"]["none"] = "0.01"


def put_back_unbounded(entries):
    body = of(entries, "maintained", 2)
    body["held"] = [*body["held"], "shallow"]


def put_back_unmeasured(entries):
    of(entries, "maintained", 1)["held"] = ["deep"]


def twice(entries):
    place = [k for k, _ in entries].index("maintained")
    entries.insert(place, copy.deepcopy(entries[place]))


def of_another_step(entries):
    of(entries, "maintained", 1)["step"] = 0


def refused_and_measured(entries):
    place = [k for k, _ in entries].index("refused")
    step = entries[place][1]["step"]
    entries.insert(place, ("maintained", {"step": step, "drift": {"shallow": "0.1"}, "held": []}))


FORGERIES = {
    "wrong_anchor": [
        *(weaker, unbounded, other_rule, undeclared, undeclared_later, too_early, again, at_another_step),
        within_a_step,
    ],
    "wrong_drift": [
        *(further, unmeasured, half_measured, negative, not_there, put_back_unbounded, put_back_unmeasured),
        *(twice, refused_and_measured),
    ],
    "wrong_outcome": [no_number, of_another_step],
}


@pytest.mark.parametrize(
    ("change", "code"), [(change, code) for code, changes in FORGERIES.items() for change in changes]
)
def test_a_forged_record_of_what_was_maintained_is_found(run, change, code):
    report = run.forge(change)
    assert report.status == "VIOLATION"
    assert report.findings[0].code == code


def test_another_anchor_after_a_change_of_policy_is_found(lab):
    governor = lab.governor(lab.policy + BOUND)
    lab.step(governor, lab.batch("aa"))
    governor.change_policy(lab.program(lab.policy + BOUND.replace("2%", "3%")))
    lab.step(governor, lab.batch("aa"))
    governor.close()
    assert lab.verify().ok

    def exchanged(entries: Any) -> None:
        of(entries, "anchored", 1)["digest"] = "ab" * 32

    assert lab.forge(exchanged).findings[0].code == "wrong_anchor"


# --- measured offline ---------------------------------------------------------------------------------------


def saved(lab: Any, model: nn.Module | None = None, policy: str = "", **options: Any) -> Path:
    """A sealed run of a bounded band, whose last weights are saved."""
    governor = lab.governor(policy or lab.policy + BOUND, model, **options)
    for number in range(4):
        lab.step(governor, lab.batch("aab"), seed=number)
    path = lab.folder / "weights.safetensors"
    governor.checkpoint(path)
    governor.close()
    return path


def test_the_drift_of_a_checkpoint_is_measured_from_both_files(lab):
    report = lab.verify(weights=saved(lab))
    assert report.ok
    assert report.facts["drift_measured"] == report.facts["drift"] == {"deep": "0.02"}


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_type_of_weights_is_read(lab, kind):
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 3)).to(kind)
    governor = lab.governor(lab.policy + "advisory maintain base { within deep  drift at most 1% }", model)
    anchor = values(governor).double()
    with torch.no_grad():
        for parameter in governor.parameters["deep"]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = lab.folder / "weights.safetensors"
    governor.checkpoint(path)
    governor.close()
    wanted = float((values(governor).double() - anchor).norm() / anchor.norm())
    measured = lab.verify(weights=path).facts["drift_measured"]["deep"]
    assert float(measured) == pytest.approx(wanted, rel=1e-5)


def test_a_tied_parameter_is_found_under_the_name_that_was_stored(lab):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
            self.b.weight = self.a.weight
            self.c = nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

    model = Tied()
    path = saved(lab, model)
    for name in ("a.weight", "b.weight"):
        with StoredWeights([path]) as weights:
            (found,) = drift_measure.values(weights, name)
        assert found.tolist() == model.a.weight.flatten().tolist()
    report = lab.verify(weights=path)
    assert report.ok
    assert float(report.facts["drift_measured"]["deep"]) <= 0.02


def test_a_trainer_that_misstates_a_drift_is_found_out_by_its_weights(lab, monkeypatch):
    monkeypatch.setattr(Maintainer, "hold", lambda self, active: Measured({"deep": 0.01}))
    path = saved(lab)
    assert lab.verify().ok
    report = lab.verify(weights=path)
    assert (report.status, report.findings[0].code) == ("VIOLATION", "wrong_drift")
    assert float(report.facts["drift_measured"]["deep"]) > 0.02


def test_without_the_anchor_the_drift_is_not_measured_and_that_is_said(lab):
    path = saved(lab)
    (file,) = anchor_files(lab)
    content = file.read_bytes()
    file.unlink()
    report = lab.verify(weights=path)
    assert report.ok
    assert [finding.code for finding in report.findings] == ["drift_unmeasured"]
    file.write_bytes(content[:-8] + bytes(8))
    assert [finding.code for finding in lab.verify(weights=path).findings] == ["anchor_mismatch"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_file_makes_the_reader_of_weights_fail_otherwise_than_it_says(tmp_path_factory, data):
    scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    entry = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F64", "F32", "BF16", "I8"]) | scalar,
            "shape": st.lists(st.integers(-2, 4) | scalar, max_size=3) | scalar,
            "data_offsets": st.lists(st.integers(-9, 40) | scalar, max_size=3) | scalar,
        },
    )
    header = st.dictionaries(st.sampled_from(["w", "__metadata__", "v"]), entry | scalar) | scalar
    text = data.draw(header.map(json.dumps).map(str.encode) | st.binary(max_size=30))
    length = data.draw(st.just(len(text)) | st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    path = tmp_path_factory.mktemp("file") / "w.safetensors"
    path.write_bytes(length + text + data.draw(st.binary(max_size=40)))
    with suppress(*FAULTS), StoredWeights([path]) as weights:
        for chunk in drift_measure.values(weights, "w"):
            assert chunk.dtype == "float64"
