"""The verbs that make files: init, build, map and keygen. They say what they wrote and overwrite nothing."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gradwarden.policy import ModelMap
from gradwarden.policy.program_json import program_from_json
from gradwarden.runtime.errors import KeyFileError
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from tests.cli.conftest import Run

SCAFFOLD = ["training.policy", "training_test.yaml", "model.yaml", ".github/workflows/gradwarden.yml"]


def test_a_scaffold_passes_everything_its_workflow_runs(run: Run, here: Path) -> None:
    assert run("init", "new/policies").exit_code == 0
    base = here / "new" / "policies"
    assert all((base / name).is_file() for name in SCAFFOLD)
    workflow = yaml.safe_load((base / SCAFFOLD[3]).read_text())
    steps = [step["run"] for step in workflow["jobs"]["policy"]["steps"] if "run" in step]
    commands = [step.split()[1:] for step in steps if step.startswith("gradwarden ")]
    assert [command[0] for command in commands] == ["check", "fmt", "test"]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "gradwarden.cli", *command], cwd=base, capture_output=True, check=False
        )
        assert done.returncode == 0, done


def test_the_tests_of_a_scaffold_leave_no_mutant_alive(run: Run) -> None:
    run("init")
    result = run("test", ".", "--mutate", "--min-coverage", "100")
    assert (result.exit_code, "survived" in result.stdout) == (0, False)


@pytest.mark.parametrize("name", SCAFFOLD)
def test_init_overwrites_nothing_and_writes_nothing_instead(run: Run, here: Path, name: str) -> None:
    (here / name).parent.mkdir(parents=True, exist_ok=True)
    (here / name).write_text("mine")
    result = run("init")
    assert result.exit_code == 2
    assert "exists already; nothing was written" in result.stderr
    assert [str(p.relative_to(here)) for p in here.rglob("*") if p.is_file()] == [name]
    assert (here / name).read_text() == "mine"


def test_init_into_a_file_is_misuse(run: Run, here: Path) -> None:
    (here / "file").write_text("")
    assert run("init", "file").exit_code == 2


def test_a_program_is_built_the_same_each_time(run: Run, policy: Path, here: Path) -> None:
    first = run("build", policy, "-o", "one.json", "--format", "json")
    run("build", policy, "-o", "two.json")
    assert (here / "one.json").read_bytes() == (here / "two.json").read_bytes()
    told = json.loads(first.stdout)
    program = program_from_json((here / "one.json").read_bytes())
    assert (told["digest"], told["name"], told["version"]) == (program.digest, "sample", 2)
    assert (told["model_map"], told["note"]) == (None, None)


def test_a_program_is_bound_to_a_model(run: Run, policy: Path, here: Path) -> None:
    run("init", "scaffold")
    result = run("build", policy, "-o", "bound.json", "--model-map", "scaffold/model.yaml")
    assert result.exit_code == 0
    program = program_from_json((here / "bound.json").read_bytes())
    model_map = ModelMap.from_yaml((here / "scaffold" / "model.yaml").read_text())
    assert program.model_map == model_map.digest
    assert sum(len(band.parameters) for band in program.bands) == len(model_map.parameters)


def test_nothing_is_written_where_the_key_cannot_sign(run: Run, policy: Path, here: Path) -> None:
    Signer.generate("k").save(here / "k.key", "secret")
    result = run("build", policy, "-o", "out.json", "--sign", "k.key")
    assert result.exit_code == 2
    assert "passphrase" in result.stderr
    assert not (here / "out.json").exists()
    (here / "pass").write_text("secret\n")
    assert (
        run("build", policy, "-o", "out.json", "--sign", "k.key", "--passphrase-file", "pass").exit_code == 0
    )
    assert (here / "out.json.note").exists()


def test_a_key_pair_works_and_is_private(run: Run, here: Path) -> None:
    result = run("keygen", "release", "--format", "json")
    told = json.loads(result.stdout)
    assert told["private"] == "release.key"
    assert stat.S_IMODE((here / "release.key").stat().st_mode) == 0o600
    public = PublicKey.load(here / "release.pub")
    assert (public.name, public.vkey) == ("release", told["vkey"])
    signature = Signer.load(here / "release.key").sign(b"message")
    assert public.verify(signature, b"message")


@pytest.mark.parametrize("existing", ["release.key", "release.pub"])
def test_keys_are_never_overwritten(run: Run, here: Path, existing: str) -> None:
    (here / existing).write_text("mine")
    result = run("keygen", "release")
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert [path.name for path in here.iterdir()] == [existing]


@pytest.mark.parametrize("way", ["prompt", "environment", "file"])
def test_a_passphrase_protects_the_key(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    (here / "pass").write_text("s3cret\r\nrest")
    monkeypatch.setenv("GRADWARDEN_TEST_PASSPHRASE", "s3cret")
    options = {
        "prompt": ["--passphrase"],
        "environment": ["--passphrase-env", "GRADWARDEN_TEST_PASSPHRASE"],
        "file": ["--passphrase-file", "pass"],
    }[way]
    result = run("keygen", "k", *options, input="s3cret\ns3cret\n" if way == "prompt" else None)
    assert result.exit_code == 0
    assert "s3cret" not in result.output
    with pytest.raises(KeyFileError, match="passphrase"):
        Signer.load(here / "k.key")
    assert Signer.load(here / "k.key", "s3cret").public == PublicKey.load(here / "k.pub")


MODEL = """
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embedding.weight

def build():
    return Tied()

def fails():
    raise RuntimeError("no\\ngpu")

class Zoo:
    model = nn.Linear(2, 2)

number = 3
def text():
    return "model"
"""


@pytest.fixture
def model_module(here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with models, importable only from the current directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"model_of_{here.name}".replace("-", "_")
    (here / f"{name}.py").write_text(MODEL)
    return name


def test_a_map_is_derived_from_a_factory(run: Run, here: Path, model_module: str) -> None:
    result = run("map", f"{model_module}:build", "-o", "model.yaml")
    assert result.exit_code == 0
    model_map = ModelMap.from_yaml((here / "model.yaml").read_text())
    assert (model_map.model, model_map.blocks) == ("Tied", 2)
    tied = next(p for p in model_map.parameters if p.name == "embedding.weight")
    assert tied.aliases == ("head.weight",)
    assert "wrote model.yaml: 5 parameters of Tied" in result.stdout


def test_a_map_is_derived_from_a_module_inside_something(run: Run, model_module: str) -> None:
    result = run("map", f"{model_module}:Zoo.model", "-o", "model.yaml", "--format", "json")
    assert json.loads(result.stdout)["parameters"] == 2


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("{}:biuld", "did you mean `build`"),
        ("{}:fails", "RuntimeError: no gpu"),
        ("{}:number", "neither a model nor something that can be called"),
        ("{}:text", "of type `str`, not an `nn.Module`"),
        ("not_there_at_all:build", "there is no module `not_there_at_all`"),
        ("{}", "is not MODULE:FACTORY"),
    ],
)
def test_what_gives_no_model_is_told(run: Run, here: Path, model_module: str, target: str, told: str) -> None:
    result = run("map", target.format(model_module), "-o", "model.yaml")
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (here / "model.yaml").exists()


def test_a_module_that_needs_what_is_missing_is_told_apart(run: Run, here: Path, model_module: str) -> None:
    (here / f"{model_module}_x.py").write_text("import surely_not_installed\n")
    result = run("map", f"{model_module}_x:build", "-o", "model.yaml")
    assert result.exit_code == 2
    assert "surely_not_installed" in result.stderr


def test_without_torch_the_extra_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, model_module: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run("map", f"{model_module}:build", "-o", "model.yaml")
    assert result.exit_code == 2
    assert "gradwarden[train]" in result.stderr


@pytest.mark.parametrize("name", ["", ".", "..", "keys/.."])
def test_a_key_needs_a_name(run: Run, here: Path, name: str) -> None:
    result = run("keygen", name)
    assert result.exit_code == 2
    assert "cannot name a key" in result.stderr
    assert list(here.iterdir()) == []


def test_a_scaffold_inside_a_repository_says_where_its_workflow_belongs(run: Run, here: Path) -> None:
    (here / ".git").mkdir()
    assert "root of the repository" not in run("init").stdout
    told = run("init", "more/policies").stdout
    assert "move more/policies/.github to the root of the repository" in told
    assert "working-directory: more/policies" in told


SIGN = """
import sys
from cryptography.hazmat.primitives.serialization import load_pem_private_key
key = load_pem_private_key(open(sys.argv[1], "rb").read(), None)
sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read()))
"""


def test_a_command_can_sign_in_the_place_of_a_key_file(run: Run, policy: Path, here: Path) -> None:
    run("keygen", "far")
    (here / "sign.py").write_text(SIGN)
    command = f"{sys.executable} sign.py far.key"
    result = run("build", policy, "-o", "out.json", "--sign", "far.pub", "--signer-command", command)
    assert result.exit_code == 0
    assert run("verify", "out.json", "--key", "far.pub").exit_code == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--signer-command", "false"], "failed with status 1"),
        (["--signer-command", "sleep 60", "--signer-timeout", "0.1"], r"longer than 0.1 s"),
        (["--signer-command", "echo 'unfinished"], "cannot be read"),
        (["--signer-command", ""], "names no command"),
        (["--signer-command", "true", "--passphrase-env", "HOME"], "there is none"),
    ],
)
def test_nothing_is_written_where_the_command_cannot_sign(
    run: Run, policy: Path, here: Path, options: list[str], told: str
) -> None:
    run("keygen", "far")
    result = run("build", policy, "-o", "out.json", "--sign", "far.pub", *options)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (here / "out.json").exists()
