"""The published experiments, in small: policies that say what they should, ledgers that hold, figures."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from examples.gradient_routing import digits, leak, two_domains
from examples.gradient_routing.corpus import collect, paragraphs, separate
from examples.gradient_routing.governed import POLICIES, governed, make_room
from examples.gradient_routing.gpt import GPTConfig, QuarantineGPT, per_example_loss
from examples.run_files import RunFiles
from gradwarden.cli.app import cli
from gradwarden.policy import format_policy, load_policy

SMALL = GPTConfig(width=16, heads=2, units=32, spare_units=8, context=32)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Runs an experiment in its quick mode once; returns its folder and what it printed."""
    done = {}

    def run(command):
        if command not in done:
            out = tmp_path_factory.mktemp("experiment") / "out"
            result = CliRunner().invoke(command, ["--quick", "--workers", "1", "--out", str(out)])
            assert result.exception is None, result.output
            done[command] = out
        return done[command]

    return run


EXPERIMENTS = [
    pytest.param(digits.main, 2, id="digits"),
    pytest.param(two_domains.main, 6, id="two_domains"),
    pytest.param(leak.main, 6, id="leak"),
]


@pytest.mark.parametrize(("command", "runs"), EXPERIMENTS)
def test_every_run_leaves_a_ledger_that_verifies(outcome, command, runs):
    ledgers = sorted(outcome(command).rglob("run.ledger"))
    assert len(ledgers) == runs
    for ledger in ledgers:
        arguments = ["verify", str(ledger), "--key", str(ledger.with_name("run.pub"))]
        if ledger.with_name("model.safetensors").exists():
            arguments += ["--policy", str(ledger.with_name("program.json"))]
            arguments += ["--checkpoint-weights", str(ledger.with_name("model.safetensors"))]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("command", "runs"), EXPERIMENTS)
def test_tables_say_what_they_were_made_with(outcome, command, runs):
    folder = outcome(command)
    results = json.loads((folder / "results.json").read_text())
    assert {"python", "torch", "gradwarden"} <= results["versions"].keys()
    assert results["cpu_seconds"] >= 0
    assert results["summary"]
    table = (folder / "results.md").read_text()
    for row in results["summary"]:
        assert all(cell in table for cell in row.values())
    (picture, *_) = folder.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_flagged_code_moves_nothing_that_does_not_see_the_quarantine(outcome):
    """The law of docs/masks.md, on a transformer."""
    runs = json.loads((outcome(leak.main) / "results.json").read_text())["runs"]
    moved = {
        run["seen_by"]: {
            band: [movement["distance"] for movement in of["movements"]]
            for band, of in run["report"]["bands"].items()
        }
        for run in runs
    }
    for band in ("shallow", "deep"):
        assert moved["flagged code alone"][band] == [0.0, 0.0, 0.0]
        for seen_by in ("all", "all but cleared prose"):
            first, *later = moved[seen_by][band]
            assert first == 0.0
            assert min(later) > 0.0
    assert min(moved["flagged code alone"]["quarantine"]) > 0.0


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.policy")), ids=lambda path: path.stem)
def test_the_policies_are_clean_and_canonical(path):
    text = path.read_text()
    assert format_policy(text) == text
    if "\npolicy " in text:
        assert load_policy(path).warnings == ()


@pytest.mark.parametrize("verb", ["test", "prove"])
def test_the_policies_pass_their_tests_and_their_assertions_hold(verb):
    result = CliRunner().invoke(cli, [verb, str(POLICIES)])
    assert result.exit_code == 0, result.output


def test_a_shut_gate_is_the_model_without_its_quarantine():
    torch.manual_seed(0)
    model = QuarantineGPT(SMALL)
    windows = torch.randint(128, (4, 33))
    shut, open_ = torch.zeros(4), torch.ones(4)
    with torch.no_grad():
        before = per_example_loss(model, windows, shut), per_example_loss(model, windows, open_)
        for parameter in model.quarantine.parameters():
            parameter.normal_()
        after = per_example_loss(model, windows, shut), per_example_loss(model, windows, open_)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.fixture(scope="module")
def corpus():
    return collect(33, 400, 40)


def test_the_domains_are_ascii_windows_of_different_documents(corpus):
    for domain in (corpus.prose, corpus.code):
        assert domain.training.shape == (400, 33)
        assert domain.testing.shape == (40, 33)
        assert int(domain.training.max()) < 128
        seen = {tuple(window) for window in domain.training.tolist()}
        assert not seen & {tuple(window) for window in domain.testing.tolist()}
    same = collect(33, 400, 40)
    assert (same.code.training == corpus.code.training).all()


def test_code_comes_without_its_documentation():
    text = '''
"""Module."""
class A:
    """Class."""

    def f(self):
        "Method."
        return 1  # one
'''
    code, documentation = separate(ast.parse(text))
    assert code == "class A:\n\n    def f(self):\n        return 1"
    assert sorted(documentation) == ["Class.", "Method.", "Module."]
    assert (
        ast.unparse(ast.parse(separate(ast.parse('def f():\n    "Only this."'))[0])) == "def f():\n    pass"
    )


def test_prose_is_paragraphs_without_examples():
    words = "This paragraph has nothing but words in it and goes on for a while "
    text = f"Short.\n\n{words}\nand {words}\n\n>>> {words * 3}\n\nx = [({'1, ' * 60})]"
    assert list(paragraphs(text)) == [f"{words.strip()} and {words.strip()}"]


def test_what_screening_misses_of_more_is_part_of_what_it_misses_of_less(corpus):
    settings = two_domains.Settings(steps=10, batch=16, model=SMALL)
    said = [
        dict(
            example
            for batch in two_domains.batches(corpus, settings, missed, 0)
            for example in batch.examples
        )
        for missed in (0.0, 0.25, 0.5)
    ]
    assert said[0].keys() == said[1].keys() == said[2].keys()
    missed = [{name for name, about in known.items() if about["screening"] == "unscreened"} for known in said]
    assert missed[0] < missed[1] < missed[2]
    assert all(name.startswith("code") for name in missed[2] - missed[0])
    assert all(about["screening"] == "flagged" for name, about in said[0].items() if name.startswith("code"))


def test_an_example_goes_with_its_own_window(corpus):
    settings = two_domains.Settings(steps=3, batch=8, model=SMALL)
    for batch in two_domains.batches(corpus, settings, 0.5, 1):
        said = [about["screening"] for _, about in batch.examples]
        assert said == sorted(said, key=["cleared", "unscreened", "flagged"].index)
        for (name, _), window in zip(batch.examples, batch.windows, strict=True):
            domain, _, row = name.partition("-")
            assert window.tolist() == getattr(corpus, domain).training[int(row)].tolist()


def test_the_quarantine_is_seen_by_what_may_shape_it(tmp_path, corpus):
    settings = two_domains.Settings(steps=1, batch=16, model=SMALL)
    model = QuarantineGPT(SMALL)
    (batch,) = two_domains.batches(corpus, settings, 0.5, 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = governed("domains_routed", model, optimizer, RunFiles(tmp_path / "run"))
    with run as governor, governor.step(batch.examples) as proposal:
        gates = two_domains.open_gates(proposal, governor.program.band_names)
        proposal.backward(per_example_loss(model, batch.windows, gates))
    said = [about["screening"] for _, about in batch.examples]
    assert gates.tolist() == [float(word != "cleared") for word in said]


def test_digits_are_tested_on_images_that_are_not_trained_on():
    data = digits.load(0)
    assert not set(data.training.tolist()) & set(data.testing.tolist())
    assert len(data.training) + len(data.testing) == len(data.digits) == 1797
    assert 0 <= float(data.pixels.min()) < float(data.pixels.max()) <= 1


def test_losses_are_by_digit():
    data = digits.load(0)
    assert digits.by_digit(data.pixels, data) == [0.0] * 10
    off = data.pixels + 0.25 * (data.digits == 7)[:, None]
    assert digits.by_digit(off, data) == [0.0] * 7 + [0.25] + [0.0] * 2


def test_a_certificate_reads_what_a_code_holds_and_nothing_else():
    data = digits.load(0)
    settings = digits.Settings(certificate_epochs=15)
    code = data.pixels[:, ::2] * (data.digits <= 4)[:, None]
    losses = digits.by_digit(digits.certificate(code, data, settings), data)
    assert max(losses[:5]) < min(losses[5:])


def test_an_earlier_experiment_is_moved_aside(tmp_path):
    out = tmp_path / "out"
    assert make_room(out) is None
    for text in ("first", "second"):
        (out / "results.json").write_text(text)
        make_room(out)
    assert (tmp_path / "out.earlier-1" / "results.json").read_text() == "first"
    assert (tmp_path / "out.earlier-2" / "results.json").read_text() == "second"
    assert not any(Path(out).iterdir())


def test_the_experiments_need_their_own_extra_only():
    for path in POLICIES.parent.glob("*.py"):
        assert "code_licences" not in path.read_text(), "that example needs pyarrow and datasketch"
