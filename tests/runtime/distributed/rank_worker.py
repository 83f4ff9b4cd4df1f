"""One process of several that train together: runs the trainings it is told of, and answers what happened.

A training is plain data, so that a test can give it to two processes in parts, or to one as a whole.
"""

from __future__ import annotations

import os
import runpy
import signal
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import date, timedelta
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.parallel import ColwiseParallel, SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gradwarden.policy import Program, compile_policy, parse_policy
from gradwarden.policy.errors import GradwardenError
from gradwarden.runtime import Governor, Job, Ledger, ModelMap, Privacy, Signer
from gradwarden.runtime.errors import LedgerError, MaskError
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules
from gradwarden.runtime.privacy.noise import Draw
from gradwarden.runtime.privacy.sampling import MixedSampler, group_rows

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.05, weight_decay=0.1),
}

PATIENCE = timedelta(seconds=20)

READER = runpy.run_path(str(Path(__file__).with_name("packed_reader.py")))
"""The model of packed sequences."""


class QuarrelError(Exception):
    pass


def model_of(seed: int) -> nn.Module:
    """Layer 0 is `deep`, layers 2 and 4 are `shallow`."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


class Block(nn.Module):
    """A residual block; its gain, where it is a parameter, is used outside any layer."""

    def __init__(self, layers_only: bool) -> None:
        super().__init__()
        self.norm, self.widen, self.narrow = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6, bias=False)
        self.gain: Any = 1.0 if layers_only else nn.Parameter(torch.linspace(0.5, 1.5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.narrow(torch.tanh(self.widen(self.norm(x))))


class Blocks(nn.Module):
    """Blocks and two heads. Under the laboratory's policy, two of five blocks are `shallow`, or one of two.

    sorts: whether examples whose first number is above 0.5 are run after the others. recomputes: whether
    activations are recomputed in the backward pass.
    """

    def __init__(
        self, sorts: bool = False, recomputes: bool = False, layers_only: bool = False, count: int = 5
    ) -> None:
        super().__init__()
        self.inlet = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(Block(layers_only) for _ in range(count))
        self.unused = nn.Parameter(torch.ones(3))
        self.head, self.twin = nn.Linear(6, 3), nn.Linear(6, 3)
        self.twin.weight = self.head.weight
        self.sorts, self.recomputes = sorts, recomputes

    def forward(self, x: Tensor) -> Tensor:
        order = (x[:, 0] > 0.5).int().argsort(stable=True) if self.sorts else torch.arange(len(x))
        x = self.inlet(x)[order] if self.sorts else self.inlet(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recomputes else block(x)
        x = self.head(x) + torch.tanh(self.twin(x))
        return x[order.argsort()] if self.sorts else x


def blocks_of(seed: int, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return Blocks(**options).double()


MODELS = {
    "plain": model_of,
    "blocks": blocks_of,
    "layers": partial(blocks_of, layers_only=True),
    "few layers": partial(blocks_of, layers_only=True, count=2),
    "few blocks": partial(blocks_of, count=2),
    "sorting": partial(blocks_of, sorts=True),
    "recomputing": partial(blocks_of, recomputes=True),
    "float32": lambda seed: blocks_of(seed).float(),
    "bfloat16": lambda seed: blocks_of(seed).bfloat16(),
    "reader": READER["reader_of"],
}


def inputs_of(examples: Sequence[dict[str, Any]]) -> Tensor:
    """The same input for an id wherever it is met, [B, 4]."""
    rows = [
        torch.randn(
            4, dtype=torch.float64, generator=torch.Generator().manual_seed(zlib.crc32(e["id"].encode()))
        )
        for e in examples
    ]
    return torch.stack(rows) if rows else torch.zeros(0, 4, dtype=torch.float64)


def losses_of(model: nn.Module, examples: Sequence[dict[str, Any]]) -> Tensor:
    inputs = inputs_of(examples)
    kind = next(model.parameters()).dtype
    return (model(inputs.to(kind)) - inputs[:, :3]).square().sum(1)


def twice_run(model: nn.Module, proposal: Any, examples: Sequence[dict[str, Any]]) -> Tensor:
    """Losses of examples with two rows each, the second ones after the first ones."""
    inputs = inputs_of(examples)
    proposal.assign(torch.arange(len(inputs)).repeat(2))
    one, other = model(torch.cat([inputs, inputs.sin()])).chunk(2)
    return (one - other.cos() - inputs[:, :3]).square().sum(1)


def proposed_losses(
    model: nn.Module, proposal: Any, examples: Sequence[dict[str, Any]], step: dict[str, Any], spoil: str
) -> Tensor:
    """The losses of a part of a step, whose rows are packed or padded where the model is a reader."""
    if "rows" not in step:
        return losses_of(model, examples)
    if step["rows"] == "twice":
        return twice_run(model, proposal, examples)
    if step["rows"] == "padded":
        return READER["padded_losses"](model, examples)
    return READER["packed_losses"](model, proposal, examples, spoil)


def train(task: dict[str, Any], rank: int = 0, group: Any = None) -> dict[str, Any]:
    """Run a training and say how it went; an error is part of the answer.

    task: `folder`, `policy`, and optionally `model`, `load` (weights), `engine`, `optimizer`, `seeds` (by
    rank), `options` (of the governor), `wrap` (`ddp`, `fsdp`) with `settings` of the wrapper, or `split`,
    `thaw` (a parameter after wrapping), `rewind` (weights to load and go back to), `steps`, `checkpoint`,
    `end` (`close` or `leave`), `ends` (a rank that then stops), `job` (options of a job, in the place of a
    ledger) and `jobs` (others, by rank), `privacy` (`private_options`), `drawn` (`Drawn`). A step has `parts`
    (examples by rank) or `homed` (examples of which each rank takes its own), and optionally `micro`,
    `signals` (by rank), `rows` (`packed`, `padded`, `twice`), `sync`, `look` (evaluate before it), `policy`
    (from here on), `save` (a checkpoint before it), `spoil` ([rank, how]), `bear` (go on after a MaskError),
    and what to tell: `count` (floating-point operations), `spy` (messages), `grads`.
    """
    answer: dict[str, Any] = {"steps": [], "error": None}
    model = MODELS[task.get("model", "plain")](task.get("seeds", [0, 0])[rank])
    try:
        if "load" in task or "rewind" in task:
            load_model(model, task.get("load") or Path(task["folder"], task["rewind"]))
        if task.get("thaw"):
            next(model.parameters()).requires_grad_(False)
        held = wrapped(task, model, group)
        if task.get("thaw"):
            next(model.parameters()).requires_grad_(True)
        drawn = Drawn(rank, 1 if group is None else 2, **task["drawn"]) if "drawn" in task else None
        with governed(task, model, held, rank, group, drawn) as governor:
            answer["first"] = governor.next_step
            if "rewind" in task:
                governor.rewind(Path(task["folder"], task["rewind"]))
            for step in drawn.steps() if drawn else task["steps"]:
                if "save" in step:
                    governor.checkpoint(Path(task["folder"], step["save"]))
                if step.get("look"):
                    with torch.no_grad():
                        losses_of(held, step["parts"][0])
                if "policy" in step:
                    governor.change_policy(
                        compile_policy(parse_policy(step["policy"]), ModelMap.from_module(held))
                    )
                answer["steps"].append(one_step(governor, held, step, rank))
            answer["notes"] = governor.engine.notes
            answer["exposures"] = {
                name: int(governor.roster.exposures(torch.tensor([row]).numpy())[0])
                for name, row in governor.roster.known().items()
            }
            if "checkpoint" in task:
                answer["digest"] = governor.checkpoint(Path(task["folder"], task["checkpoint"]))
            if task.get("end") == "leave":
                raise QuarrelError
    except QuarrelError:
        pass
    except GradwardenError as error:
        answer["error"] = [type(error).__name__, str(error)]
    answer["names"] = [name for name, _ in model.named_parameters()]
    # Gathering takes all processes, and one that failed may be alone, but not with the one ledger of all.
    failed = answer["error"] is not None and ("job" in task or answer["error"][0] != "LedgerError")
    if not failed or task.get("wrap") != "fsdp":
        answer["weights"] = [whole(parameter) for parameter in model.parameters()]
    return answer


def wrapped(task: dict[str, Any], model: nn.Module, group: Any) -> nn.Module:
    """The model as a loop calls it; one process trains without a wrapper."""
    if group is not None and task.get("split"):
        return SPLITS[task["split"]](model, dist.get_rank())
    if group is None or not task.get("wrap"):
        return model
    if task["wrap"] == "fsdp":
        return sharded(model, **shard_settings(**task.get("settings", {})))
    return DistributedDataParallel(model, process_group=group, **task.get("settings", {}))


def sharded(model: nn.Module, **settings: Any) -> nn.Module:
    """Shard every block with parameters by itself, then the rest."""
    for block in getattr(model, "blocks", model):
        if any(True for _ in block.parameters()):
            fully_shard(block, **settings)
    return fully_shard(model, **settings)


def tensors_split(model: nn.Module, rank: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    return parallelize_module(model, mesh, {"head": ColwiseParallel()})


def tensors_split_and_sharded(model: nn.Module, rank: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    return fully_shard(parallelize_module(model, mesh["tp"], {"head": ColwiseParallel()}), mesh=mesh["dp"])


def norms_split(model: nn.Module, rank: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("sequence",))
    return parallelize_module(model, mesh, {"blocks.0.norm": SequenceParallel()})


def only_blocks_sharded(model: nn.Module, rank: int) -> nn.Module:
    for block in model.blocks:
        fully_shard(block)
    return model


def divided(model: nn.Module, rank: int) -> nn.Module:
    sharded(model).set_gradient_divide_factor(1.0)
    return model


def staged(model: nn.Module, rank: int) -> nn.Module:
    return nn.Sequential(*list(model)[3 * rank : 3 * rank + 3])


SPLITS = {
    "tp": tensors_split,
    "fsdp+tp": tensors_split_and_sharded,
    "sp": norms_split,
    "blocks": only_blocks_sharded,
    "divided": divided,
    "stages": staged,
    "fsdp1": lambda model, rank: FullyShardedDataParallel(model, device_id=torch.device("cpu")),
}
"""Ways of spreading a model that a governor refuses."""


def shard_settings(bf16: bool = False, mesh: list[int] | None = None, **settings: Any) -> dict[str, Any]:
    """The settings of `fully_shard` that a task spells as plain data."""
    if bf16:
        settings["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    if mesh is not None:
        settings["mesh"] = init_device_mesh("cpu", tuple(mesh), mesh_dim_names=("copies", "pieces"))
    return settings


def whole(tensor: Tensor) -> Any:
    """The values of a parameter, gathered where it is scattered."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().tolist()


@contextmanager
def governed(
    task: dict[str, Any], model: nn.Module, held: nn.Module, rank: int, group: Any, drawn: Drawn | None
) -> Iterator[Governor]:
    model_map = None if "split" in task else ModelMap.from_module(held)
    program = compile_policy(parse_policy(task["policy"]), model_map)
    optimizer = OPTIMIZERS[task.get("optimizer", "sgd")](model.parameters())
    folder = Path(task["folder"])
    ledger = job = None
    if "job" in task:
        settings = {**task["job"], **task.get("jobs", [{}, {}])[rank]}
        place = folder / settings.pop("folder", "job")
        job = Job(place, Signer.load(folder / "run.key"), durability="os", **settings)
    if rank == 0 and job is None:
        ledger = Ledger.open(folder / "run.ledger", Signer.load(folder / "run.key"), durability="os")
    options = {"clock": lambda: date(2026, 1, 31 - rank), **task.get("options", {})}
    if "privacy" in task:
        sampler = None if drawn is None else drawn.sampler
        options |= {"privacy": private_options(program, rank, sampler=sampler, **task["privacy"])}
        options |= {"normaliser": 4.0}
    if drawn is not None:
        options |= {"dataset": drawn.dataset}
    try:
        with Governor(
            program,
            held,
            optimizer,
            ledger=ledger,
            group=None if task.get("wrap") else group,
            engine=task.get("engine", "fused"),
            job=job,
            **options,
        ) as governor:
            if task.get("privacy", {}).get("silent"):
                governor.joined.budgets._noise = Silence()
            yield governor
    finally:
        if ledger is not None:
            ledger.close()


def one_step(governor: Governor, held: nn.Module, step: dict[str, Any], rank: int) -> dict[str, Any]:
    if "homed" in step:
        examples = [e for e, own in zip(step["homed"], governor.at_home(step["homed"]), strict=True) if own]
    else:
        examples = step["parts"][rank]
    spoiler, how = step.get("spoil", [None, ""])
    spoil = how if spoiler in (rank, "all") else ""
    spy = step.get("spy", False)
    signals = step["signals"][rank] if "signals" in step else None
    proposal = governor.step(examples, signals=signals)
    raised = None
    count, messages = FlopCounterMode(display=False), messages_of(spy)
    calls: Counter[str] = Counter()
    try:
        with counted(calls), proposal, count if step.get("count") else nullcontext(), messages:
            size = step.get("micro", [len(examples) or 1] * 2)[rank]
            for rows in proposal.micro_batches(size):
                if "sync" in step:
                    held.set_requires_gradient_sync(step["sync"] and rows.stop == len(examples))
                with context(spoil):
                    if spoil == "skip":
                        break
                    losses = proposed_losses(held, proposal, examples[rows], step, spoil)
                    spoilt(spoil, governor, losses)
                    proposal.backward(losses * float("nan") if spoil in ("nan", "die late") else losses)
    except QuarrelError as error:
        raised = type(error).__name__
    except MaskError as error:
        if not step.get("bear"):
            raise
        raised = error.message
    return {
        "committed": proposal.committed,
        "raised": raised,
        "verdict": proposal.verdict,
        "work": count.get_total_flops() if step.get("count") else None,
        "active": list(proposal.active),
        "refusal": proposal.refusal
        and [proposal.refusal.gate, proposal.refusal.reason, proposal.refusal.detail],
        "loss": proposal.mean_loss,
        "messages": {str(kind): n for kind, n in messages.get_comm_counts().items()} if spy else None,
        "calls": dict(calls),
        "norms": proposal.norms,
        "grads": [whole(p.grad) for p in governor.model.parameters() if p.grad is not None]
        if step.get("grads")
        else None,
        "local": proposal.weights.tolist(),
        "graded": [parameter.grad is not None for parameter in governor.model.parameters()],
        # Gathering takes all processes, of which one is gone then.
        "weights": [whole(p) for p in governor.model.parameters() if how != "die late"],
        "ratios": governor.measures.references.signal(proposal.batch).tolist(),
        "measured": {
            name: values.tolist() for name, values in governor.measures.signals(proposal.batch).items()
        },
    }


@contextmanager
def counted(calls: Counter[str]) -> Iterator[None]:
    """Count the messages for which the governor itself calls torch, by their kind."""
    kinds = ("all_reduce", "all_gather", "all_gather_object", "broadcast_object_list", "broadcast")
    originals = {name: getattr(dist, name) for name in kinds}

    def counting(name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return originals[name](*args, **options)

        return call

    try:
        for name in kinds:
            setattr(dist, name, counting(name))
        yield
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def messages_of(spy: bool) -> Any:
    """What counts the collective operations within, if asked to."""
    if not spy:
        return nullcontext()
    from torch.distributed.tensor.debug import CommDebugMode  # takes a second to import

    return CommDebugMode()


def context(spoil: str) -> Any:
    """What the loop runs a part of a step in."""
    if spoil != "context":
        return nullcontext()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("cp",))
    return context_parallel(mesh, buffers=[torch.zeros(8, 2)], buffer_seq_dims=[0])


def spoilt(how: str, governor: Governor, losses: Tensor) -> None:
    """Do what a test wants to go wrong on one rank."""
    match how:
        case "raise":
            raise QuarrelError
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die late":  # when the step is refused on all, and this rank has not recorded it yet
            governor.ledger.flush()
            governor.joined.recorder.refuse = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        case "foreign":
            first = next(governor.model.parameters())
            first.grad = torch.ones_like(first)
        case "zero" | "drop":
            governor.optimizer.zero_grad(set_to_none=how == "drop")
        case "backward":
            losses.sum().backward(retain_graph=True)
        case "disk":
            governor.ledger.flush()
            governor.ledger._writer._file.write = full
            governor.joined.recorder.event("expired", {"step": 0, "rule": "r", "count": 0})
            with suppress(LedgerError):
                governor.ledger.flush()


class Silence:
    """A source of noise that draws zeros."""

    def reserve(self, count: int, dtype: torch.dtype) -> Draw:
        return torch.zeros(count, dtype=dtype).numpy


def private_options(
    program: Program,
    rank: int,
    noise: Sequence[float] = (4.0, 4.0),
    silent: bool = False,
    **options: Any,
) -> Privacy:
    """What a governor needs for privacy rules. noise: multipliers by rank."""
    plan = JointPlan.for_noise(privacy_rules(program), 0.5, noise[rank])
    trusted = () if options.get("sampler") else ("sampling",)
    return Privacy(plan, **{"noise_seed": 5, "on_trust": trusted, **options})


class Drawn:
    """Steps that are drawn by a sampler.

    who: the unit of each example, None for a public one. seeds: by rank. more: what else a step has.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        who: Sequence[str | None],
        count: int,
        seeds: Sequence[int],
        more: dict[int, dict[str, Any]] | None = None,
    ) -> None:
        self._place, self._count, self._more = (rank, size), count, more or {}
        self.dataset = [
            (f"x{row}", {"kind": "d", "who": name, "ok": True} if name else {"kind": "a", "ok": True})
            for row, name in enumerate(who)
        ]
        private = torch.tensor([row for row, name in enumerate(who) if name]).numpy()
        units = group_rows([who[row] for row in private], private)
        public = [row for row, name in enumerate(who) if not name]
        self.sampler = MixedSampler(public, units, batch_size=3, rate=0.5, seed=seeds[rank])

    def steps(self) -> Iterator[dict[str, Any]]:
        rank, size = self._place
        for place, batch in enumerate(islice(chain.from_iterable(repeat(self.sampler)), self._count)):
            rows = self.sampler.part(batch, rank, size).rows
            examples = [{"id": self.dataset[row][0], **self.dataset[row][1]} for row in rows.tolist()]
            yield {"parts": {rank: examples}, **self._more.get(place, {})}


def full(data: bytes) -> None:
    raise OSError(28, "No space left on device")


def serve(rank: int, size: int, store: str, pipe: Any) -> None:
    """Answer tasks until the pipe is closed."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=PATIENCE
    )
    pipe.send("ready")
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(train(task, rank, dist.group.WORLD))
        if task.get("ends") == rank:
            return


if __name__ == "rank_worker":
    serve(**SETTINGS)  # type: ignore[name-defined]  # noqa: F821 - given by the process that starts this one
