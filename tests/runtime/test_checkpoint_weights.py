"""Weights are held against the checkpoints that a ledger names; bands that no step may shape stay."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import load_model
from torch import nn

from gradwarden.runtime.average import GovernedAverage
from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.verification.outcome_audit import OutcomeAudit
from gradwarden.runtime.verification.violation import ViolationError
from gradwarden.runtime.verification.weight_audit import MOST_CHECKPOINTS, WeightAudit
from gradwarden.runtime.weights.tree import CHUNK, TensorDigest, weights_root


@pytest.fixture(scope="module")
def run(laboratory: Any, tmp_path_factory: pytest.TempPathFactory, run_signer: Any) -> Any:
    """Checkpoints 0, 2 and 4; `deep` is shaped by steps 2 and 3 alone. Adam, and weight decay."""
    lab = laboratory(tmp_path_factory.mktemp("weights"), run_signer)
    model = lab.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3)
    governor = lab.governor(lab.policy, model, optimizer)
    for step, kinds in enumerate(["bb", "b", "ab", "a"]):
        if step in (0, 2):
            governor.checkpoint(lab.folder / f"{step}.safetensors", state=step == 0)
        lab.step(governor, lab.batch(kinds, f"s{step}-"), seed=step)
    governor.checkpoint(lab.folder / "4.safetensors")
    governor.close()
    return lab


@pytest.fixture
def forge(run: Any, tmp_path: Path) -> Callable[..., Any]:
    """Writes the run anew, changed and with the true key; verifies that."""

    def write(change: Any) -> Any:
        other = type(run)(tmp_path, run.signer)
        entries = [(entry.kind, copy.deepcopy(entry.body)) for entry in run.entries() if entry.kind != "head"]
        entries = change(entries) or entries
        ledger = Ledger.open(other.path(), run.signer, durability="os", origin=entries[0][1]["origin"])
        for kind, body in entries[:-1]:
            ledger.append(kind, body)
        ledger.close(entries[-1][1])
        return other

    return write


def codes(report: Any) -> list[str]:
    return [finding.code for finding in report.findings]


def copied(lab: Any, tmp_path: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Write the tensors of a checkpoint again, changed, with its leaves beside them."""
    arrays = dict(safetensors.numpy.load_file(lab.folder / f"{name}.safetensors"))
    arrays = change(arrays) or arrays
    path = tmp_path / f"{name}.safetensors"
    safetensors.numpy.save_file(arrays, path)
    (tmp_path / f"{name}.leaves").write_bytes((lab.folder / f"{name}.leaves").read_bytes())
    return path


def test_the_ledger_says_which_checkpoint_weights_are(run: Any) -> None:
    report = run.verify(weights=[run.folder / "4.safetensors", run.folder / "0.safetensors"])
    assert report.ok
    told = [(one["step"], one["last"], one["same_file"]) for one in report.facts["weights"]]
    assert told == [(4, True, True), (0, False, True)]
    assert [run.entries()[one["entry"]].kind for one in report.facts["weights"]] == ["checkpoint"] * 2
    alone = run.verify(weights=run.folder / "2.safetensors")
    (finding,) = alone.findings
    assert (alone.status, finding.code) == ("VIOLATION", "weights_mismatch")
    assert "`2.safetensors` is the checkpoint at step 2" in finding.message
    assert run.verify(weights=run.folder / "2.safetensors", earlier=True).ok


def test_how_much_of_the_weights_is_hashed_is_told(run: Any) -> None:
    told: list[int] = []
    files = [run.folder / f"{name}.safetensors" for name in (4, 0)]
    assert run.verify(weights=files, hashed=told.append).ok
    tensors = [array for file in files for array in safetensors.numpy.load_file(file).values()]
    assert sum(told) == sum(array.nbytes for array in tensors)


def test_the_same_tensors_in_other_files_are_the_checkpoint(run: Any, tmp_path: Path) -> None:
    arrays = safetensors.numpy.load_file(run.folder / "4.safetensors")
    for number, name in enumerate(sorted(arrays, reverse=True)):  # files in another order than tensors
        safetensors.numpy.save_file(
            {name: arrays[name]}, tmp_path / f"shard-{number}.safetensors", {"a": "b"}
        )
    report = run.verify(weights=tmp_path)
    assert report.ok
    assert [(one["step"], one["same_file"]) for one in report.facts["weights"]] == [(4, False)]
    (tmp_path / "shard-0.safetensors").unlink()
    (finding,) = run.verify(weights=tmp_path).findings
    assert finding.code == "weights_mismatch"
    assert "1 of 6 tensors differ from the checkpoint at step 4" in finding.message
    assert f"`{max(arrays)}` is missing" in finding.message


def test_what_differs_is_named_and_located(run: Any, tmp_path: Path) -> None:
    def nudge(arrays: dict[str, Any]) -> None:
        arrays["2.weight"][1, 1] = np.nextafter(arrays["2.weight"][1, 1], 9)

    path = copied(run, tmp_path, "4", nudge)
    (finding,) = run.verify(weights=path).findings
    assert finding.code == "weights_mismatch"
    assert "1 of 6 tensors differ from the checkpoint at step 4" in finding.message
    size = 5 * 6 * 8
    assert f"`2.weight` within bytes 0 to {size - 1} (from byte " in finding.message
    begin = int(finding.message.split("from byte ")[1].split()[0])
    assert path.read_bytes()[begin : begin + size] == safetensors.numpy.load_file(path)["2.weight"].tobytes()
    path.with_suffix(".leaves").unlink()
    (finding,) = run.verify(weights=path).findings
    assert finding.message.endswith("`2.weight`")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: {**arrays, "0.bias": arrays["0.bias"].astype("f4")}, "is F32 [6] and not F64 [6]"),
        (lambda arrays: {**arrays, "2.weight": arrays["2.weight"].T.copy()}, "[6, 5] and not F64 [5, 6]"),
        (lambda arrays: {**arrays, "9.bias": arrays["0.bias"]}, "`9.bias` is not in the checkpoint"),
        (lambda arrays: {k: v for k, v in arrays.items() if k != "0.bias"}, "`0.bias` is missing"),
    ],
)  # fmt: skip
def test_how_a_tensor_differs_is_said(run: Any, tmp_path: Path, change: Any, words: str) -> None:
    (finding,) = run.verify(weights=copied(run, tmp_path, "4", change)).findings
    assert (finding.code, words in finding.message) == ("weights_mismatch", True)


def test_a_file_that_is_no_safetensors_is_told_in_words(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes((run.folder / "4.safetensors").read_bytes()[:-1])
    (finding,) = run.verify(weights=path).findings
    assert finding.code == "weights_mismatch"


def test_a_trainer_who_lists_other_tensors_than_were_saved_is_found_by_the_file(run: Any, forge: Any) -> None:
    def lie(entries: Any) -> None:
        """Give the last checkpoint the tensors of the first: `deep` seems never to have moved."""
        lists = [body for kind, body in entries if kind == "tensors"]
        saved = [body for kind, body in entries if kind == "checkpoint" and body["tensors"]]
        lists[-1]["tensors"] = lists[0]["tensors"]
        saved[-1]["tensors"] = saved[0]["tensors"]

    lab = forge(lie)
    assert lab.verify().ok
    report = lab.verify(weights=run.folder / "4.safetensors")
    (finding,) = report.findings
    assert (report.status, finding.code) == ("VIOLATION", "wrong_tensors")
    assert lab.entries()[finding.index].kind == "checkpoint"


def test_a_list_of_tensors_cannot_be_left_out_once_there_was_one(run: Any, forge: Any) -> None:
    def hide(entries: Any) -> None:
        """Say nothing of the last weights, so that nothing in them seems to have moved."""
        *_, last = (
            place for place, (kind, body) in enumerate(entries) if kind == "checkpoint" and body["tensors"]
        )
        entries[last][1]["tensors"] = None
        while entries[last - 1][0] == "tensors":
            last -= 1
            del entries[last]

    (finding,) = forge(hide).verify().findings
    assert (finding.code, "are not listed" in finding.message) == ("wrong_tensors", True)


def test_a_ledger_that_lists_no_tensors_at_all_is_one_of_an_older_version(run: Any, forge: Any) -> None:
    def hide_all(entries: Any) -> None:
        entries[:] = [(kind, body) for kind, body in entries if kind != "tensors"]
        for kind, body in entries:
            if kind == "checkpoint":
                body["tensors"] = None

    assert forge(hide_all).verify().ok


def out_of_order(parts: Any, told: Any, change: Callable[[list[Any]], Any]) -> None:
    """Change a list, and name its root."""
    listed = parts[0]["tensors"]
    change(listed)
    tensors = tuple(TensorDigest(n, d, tuple(s), bytes.fromhex(r)) for n, d, s, r in listed)
    told.update(count=len(tensors), root=weights_root(tensors).hex())


@pytest.mark.parametrize(
    "change",
    [
        lambda parts, told: out_of_order(parts, told, lambda listed: listed.reverse()),
        lambda parts, told: out_of_order(parts, told, lambda listed: listed.append(listed[-1])),
        lambda parts, told: parts[0]["tensors"].reverse(),
        lambda parts, told: parts[0]["tensors"].pop(),
        lambda parts, told: parts[0]["tensors"].append(parts[0]["tensors"][-1]),
        lambda parts, told: parts[0].update(part=1),
        lambda parts, told: parts[0].update(step=9),
        lambda parts, told: parts[0].update(tied=[["x", "y"]]),
        lambda parts, told: parts[0]["tensors"][0].__setitem__(1, "F32"),
        lambda parts, told: told.update(root="0" * 64),
        lambda parts, told: told.update(count=told["count"] + 1),
        lambda parts, told: told.update(chunk=4096),
    ],
)  # fmt: skip
def test_a_list_that_contradicts_itself_is_found(forge: Any, change: Any) -> None:
    def contradict(entries: Any) -> None:
        parts = [body for kind, body in entries if kind == "tensors"]
        change(parts, [body for kind, body in entries if kind == "checkpoint"][1]["tensors"])

    report = forge(contradict).verify()
    assert (report.status, codes(report)[0]) == ("VIOLATION", "wrong_tensors")


@pytest.mark.parametrize("later", ["listed", "damaged"])
def test_weights_are_compared_behind_a_violation(run: Any, forge: Any, later: str) -> None:
    """The replay stops at the first step; no list of tensors has come by then."""

    def violate(entries: Any) -> Any:
        [first, *_] = [body for kind, body in entries if kind == "checkpoint" and body["tensors"]]
        first["tensors"] = None
        next(body for kind, body in entries if kind == "step")["verdict"] = "refuse"
        lists = [entry for entry in entries if entry[0] == "tensors"]
        if later == "damaged":
            lists[-1][1]["part"] = 7
        return [entry for entry in entries if entry is not lists[0]]

    lab = forge(violate)
    assert codes(lab.verify(weights=run.folder / "4.safetensors")) == ["wrong_decision"]
    report = lab.verify(weights=run.folder / "2.safetensors")
    assert codes(report) == ["wrong_decision", "weights_mismatch"]


def test_a_ledger_that_lists_no_tensors_verifies_as_before(run: Any, forge: Any) -> None:
    def older(entries: Any) -> Any:
        for kind, body in entries:
            if kind == "checkpoint":
                body["tensors"] = None
        return [entry for entry in entries if entry[0] != "tensors"]

    lab = forge(older)
    assert lab.verify().facts["unchanged"] is None
    assert lab.verify(weights=run.folder / "4.safetensors").ok
    assert codes(lab.verify(weights=run.folder / "2.safetensors")) == ["weights_mismatch"]
    assert codes(lab.verify(weights=run.folder)) == ["weights_mismatch"]


# --- bands that no step may shape ---------------------------------------------------------------------------


def test_bands_that_stayed_the_same_are_told_from_the_ledger_alone(run: Any) -> None:
    facts = run.verify().facts
    told = [(one["since"], one["step"], one["same"], one["changed"]) for one in facts["checkpoints"]]
    assert told == [(None, 0, [], []), (0, 2, ["deep"], ["shallow"]), (2, 4, [], ["shallow", "deep"])]
    assert facts["unchanged"] == {"from": 0, "to": 4, "bands": []}


class _Meddling(torch.optim.SGD):
    """Decays every parameter, whether it has a gradient or not."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.999)
        return result


def saved_around(lab: Any, kinds: str, between: Callable[[Any], Any] = lambda _: None, **options: Any) -> Any:
    """Take a step between two checkpoints, do something else, and verify."""
    model = options.pop("model", None) or lab.model()
    optimizer = options.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=0.1)
    governor = lab.governor(lab.policy, model, optimizer, **options)
    governor.checkpoint(lab.folder / "a.safetensors")
    lab.step(governor, lab.batch(kinds))
    between(governor)
    governor.checkpoint(lab.folder / "b.safetensors")
    governor.close()
    return lab.verify(weights=[lab.folder / "a.safetensors", lab.folder / "b.safetensors"])


def test_an_optimizer_that_moves_what_has_no_gradient_is_found(lab: Any) -> None:
    report = saved_around(lab, "b", optimizer=_Meddling)
    (finding,) = report.findings
    assert (report.status, finding.code) == ("VIOLATION", "frozen_moved")
    assert lab.entries()[finding.index].kind == "checkpoint"
    assert "between the checkpoints at steps 0 and 1 may shape the band `deep`" in finding.message
    assert "`0.bias`, `0.weight`" in finding.message


def test_one_bit_of_a_band_that_was_not_shaped_is_found(lab: Any) -> None:
    def flip(governor: Any) -> None:
        bits = governor.model[0].bias.data.view(torch.int64)
        bits[3] ^= 1

    report = saved_around(lab, "b", flip)
    assert codes(report) == ["frozen_moved"]
    assert "`0.bias`" in report.findings[0].message


def test_a_band_that_a_step_may_shape_may_move(lab: Any) -> None:
    assert saved_around(lab, "a", optimizer=_Meddling).ok


@pytest.mark.parametrize(("kinds", "found"), [("b", ["frozen_moved"]), ("a", [])])
def test_many_steps_at_once_are_judged_like_one(lab: Any, kinds: str, found: list[str]) -> None:
    """Steps that stand one after the other are verified together, by columns."""
    model = lab.model()
    governor = lab.governor(lab.policy, model, _Meddling(model.parameters(), lr=0.1))
    governor.checkpoint(lab.folder / "a.safetensors")
    for step in range(12):
        lab.step(governor, lab.batch(kinds, f"s{step}"))
    governor.checkpoint(lab.folder / "b.safetensors")
    governor.close()
    assert codes(lab.verify()) == found


@pytest.mark.parametrize(("kinds", "found"), [("b", ["frozen_moved"]), ("a", [])])
def test_a_step_whose_outcome_was_lost_may_have_moved_its_bands(
    lab: Any, kinds: str, found: list[str]
) -> None:
    class Stopping(_Meddling):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            raise KeyboardInterrupt

    model = lab.model()
    governor = lab.governor(lab.policy, model, Stopping(model.parameters(), lr=0.1))
    governor.checkpoint(lab.folder / "a.safetensors")
    with pytest.raises(KeyboardInterrupt):
        lab.step(governor, lab.batch(kinds))
    governor = lab.governor(lab.policy, model)
    governor.checkpoint(lab.folder / "b.safetensors")
    governor.close()
    assert codes(lab.verify()) == found


def test_noise_moves_a_band_that_no_example_reaches(lab: Any) -> None:
    """Nor does a rank of a job know from its own examples what a lost step has moved."""
    text = lab.policy + (
        "privacy p { when has who and kind == c  within shallow  epsilon 3 delta 1e-6 clip 1.0 unit who }\n"
    )
    program = lab.program(text, lab.model())
    alone, job = OutcomeAudit(program, 1.0), OutcomeAudit(program, 1.0, together=True)
    assert alone.movable(0, ()) == ["shallow"]
    assert alone.movable(0, ("p",)) == []
    assert alone.movable(0b10, ("p",)) == ["deep"]
    assert job.movable(0, ("p",)) == ["shallow", "deep"]


def test_steps_that_a_rank_left_out_may_have_moved_anything(lab: Any) -> None:
    def saved_twice(between: Callable[[WeightAudit], object]) -> None:
        audit = WeightAudit()
        audit.take_program(lab.program(model=lab.model()))
        for fill in (1, 2):
            tensors = tuple(
                TensorDigest(name, "F64", (1,), bytes([fill]) * 32)
                for name, _ in sorted(lab.model().named_parameters())
            )
            listed = [[one.name, one.dtype, [1], one.root.hex()] for one in tensors]
            told = {"chunk": CHUNK, "count": 6, "of": "model", "root": weights_root(tensors).hex()}
            audit.add_part({"step": fill, "part": 0, "tensors": listed, "tied": []})
            audit.take_checkpoint(fill, {"step": fill, "file": "w", "digest": "", "tensors": told})
            between(audit)

    saved_twice(WeightAudit.move_all)
    with pytest.raises(ViolationError, match="may shape the band `shallow`"):
        saved_twice(lambda audit: audit.move(["deep"]))


def test_a_refused_step_lets_nothing_move(lab: Any) -> None:
    report = saved_around(lab, "A", optimizer=torch.optim.SGD)
    assert report.ok
    assert report.facts["checkpoints"][-1]["same"] == ["shallow", "deep"]


def test_a_change_of_policy_keeps_count_of_what_moved(lab: Any) -> None:
    """Under the second policy the same parameters belong to other bands."""
    other = lab.policy.replace("shallow = top 40%  deep = rest", "deep = top 40%  shallow = rest")

    def change(governor: Any) -> None:
        governor.change_policy(lab.program(other, governor.model))
        lab.step(governor, lab.batch("b", "later"))

    report = saved_around(lab, "b", change)
    assert report.ok, report.findings
    assert report.facts["checkpoints"][-1]["same"] == []


def test_tied_parameters_are_found_under_the_name_that_was_stored(lab: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.a = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
            self.a.weight = self.b.weight
            self.c = nn.Linear(4, 3).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.tanh(self.a(torch.tanh(self.b(x)))))

    report = saved_around(lab, "b", model=Tied())
    assert report.ok
    assert [body["tied"] for body in lab.bodies("tensors")] == [[["b.weight", "a.weight"]]] * 2
    assert report.facts["checkpoints"][-1]["same"] == ["deep"]


def test_an_average_is_held_against_averages(lab: Any) -> None:
    model = lab.model()
    governor = lab.governor(lab.policy, model)
    average = GovernedAverage(model, governor.program.bands, 0.9)

    def save(name: str) -> None:
        governor.checkpoint(lab.folder / f"{name}.safetensors")
        with average.applied():
            governor.checkpoint(lab.folder / f"{name}-average.safetensors")

    for step, kinds in enumerate("ba"):
        save(str(step))
        average.update(lab.step(governor, lab.batch(kinds, f"s{step}")).active)
    save("2")
    average.update(lab.step(governor, lab.batch("b", "last")).active)
    save("3")
    governor.close()
    report = lab.verify()
    assert report.ok, report.findings
    told = [(one["of"], one["step"], one["same"]) for one in report.facts["checkpoints"]]
    assert told[-2:] == [("model", 3, ["deep"]), ("average", 3, ["deep"])]

    def rename(entries: Any) -> None:
        """Call the averages the model: then `deep` differs at step 2, and no step lies between."""
        for kind, body in entries:
            if kind == "checkpoint":
                body["tensors"]["of"] = "model"

    assert codes(lab.forge(rename)) == ["frozen_moved"]


@pytest.mark.parametrize(("band", "found"), [("shallow", []), ("deep", ["frozen_moved"])])
def test_after_a_stop_what_never_moved_stays_bound(lab: Any, band: str, found: list[str]) -> None:
    """Going on from other weights is told where a band is another that no step has ever moved."""
    governor = lab.governor()
    for name, kinds in (("0", "b"), ("1", "B")):
        governor.checkpoint(lab.folder / f"{name}.safetensors")
        lab.step(governor, lab.batch(kinds, name))
    governor.__exit__(LedgerError, LedgerError("stop"), None)
    governor = lab.governor(model=lab.model())
    with torch.no_grad():
        governor.parameters[band][0].add_(1.0)
    governor.checkpoint(lab.folder / "2.safetensors")
    governor.close()
    report = lab.verify()
    assert codes(report) == found
    if not found:
        assert report.facts["unchanged"] == {"from": 0, "to": 2, "bands": ["deep"]}


@pytest.mark.parametrize(
    ("back", "band", "found"),
    [
        ("1", None, []),
        ("1", "deep", ["frozen_moved"]),
        ("1", "shallow", ["frozen_moved"]),
        ("0", None, []),
        ("0", "shallow", []),
    ],
)
def test_going_back_to_the_last_checkpoint_binds_to_it(
    lab: Any, back: str, band: str | None, found: list[str]
) -> None:
    """Going back further binds what no step has moved, and nothing else."""
    governor = lab.governor()
    for name, kinds in (("0", "b"), ("1", "a")):
        governor.checkpoint(lab.folder / f"{name}.safetensors")
        lab.step(governor, lab.batch(kinds, name))
    load_model(governor.model, lab.folder / f"{back}.safetensors")
    governor.rewind(lab.folder / f"{back}.safetensors")
    if band is not None:
        with torch.no_grad():
            governor.parameters[band][0].add_(1.0)
    governor.checkpoint(lab.folder / "2.safetensors")
    governor.close()
    assert codes(lab.verify()) == found


def test_lists_that_need_many_entries_are_put_together(lab: Any) -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 3).double()
            for number in range(600):
                self.register_buffer(f"{'é' * 20}_{number}", torch.full((1,), number))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x)

    model = Many()
    policy = lab.policy.replace("shallow = top 40%  deep = rest", "shallow = rest")
    policy = policy.replace("depth d { when kind == d  reach deep at 0.25 }", "")
    governor = lab.governor(policy, model)
    governor.checkpoint(lab.folder / "w.safetensors")
    governor.close()
    parts = lab.bodies("tensors")
    assert [part["part"] for part in parts] == list(range(len(parts)))
    assert len(parts) > 1
    assert all(len(json.dumps(part, ensure_ascii=False).encode()) < 60_000 for part in parts)
    assert lab.verify(weights=lab.folder / "w.safetensors").ok

    def swap(entries: Any) -> Any:
        places = [at for at, (kind, _) in enumerate(entries) if kind == "tensors"]
        entries[places[0]], entries[places[1]] = entries[places[1]], entries[places[0]]

    assert codes(lab.forge(swap)) == ["wrong_tensors"]


def test_what_is_told_of_checkpoints_is_bounded() -> None:
    audit = WeightAudit()
    root = "a" * 64
    part = {"step": 0, "part": 0, "tensors": [["w", "F32", [1], root]], "tied": []}
    whole = weights_root((TensorDigest("w", "F32", (1,), bytes.fromhex(root)),)).hex()
    told = {"chunk": CHUNK, "count": 1, "of": "model", "root": whole}
    for index in range(MOST_CHECKPOINTS + 5):
        audit.add_part(part)
        audit.take_checkpoint(index, {"step": 0, "file": "w", "digest": root, "tensors": told})
    assert len(audit.facts()["checkpoints"]) == MOST_CHECKPOINTS
    assert audit.count == MOST_CHECKPOINTS + 5
