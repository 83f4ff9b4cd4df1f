"""Time of a governed training step over the plain one, on a GPT.

Six blocks, width 384, 128 tokens, batch 16, float32, AdamW; forward, backward and optimizer step. Plain and
governed steps alternate, each on its own copy of the model, and the median of the pairs' ratios is reported
with its quartiles. The cases time the mask engine; `whole_governor` times all of it, admission, gates and a
ledger on disk included, under a policy with fractional weights. The bars are for this shape on a processor;
on an accelerator a step of it is too short to tell anything but the cost of launching, so give a larger one.

    python -m benchmarks.step_time [--pairs 9] [--threads 2] [--only CASE]
    python -m benchmarks.step_time --device cuda --width 1024 --tokens 1024 --pairs 50
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.results import write_results
from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.program import Band
from gradwarden.runtime import Governor, Ledger, ModelMap, Signer
from gradwarden.runtime.masks import make_engine

BLOCKS, BATCH, VOCABULARY, HEAD_WIDTH = 6, 16, 256, 64

Step: TypeAlias = Callable[[Tensor, Tensor], None]

POLICY = """
policy benchmark version 1 language 1
examples { kind : one of a, b }
model { shallow = top 25%  middle = next 50%  deep = rest }
depth a { when kind == a  reach shallow at 0.9, middle at 0.5, deep at 0.2 }
depth b { when kind == b  reach shallow at 0.7, middle at 0.6, deep at 0.4 }
retain few { when kind == a  at most 1000000 exposures }
"""

WARM_UP = 9
"""Pairs before the measured ones: the engine checks itself on batches 1, 2, 4, 8, 16, …, ever more rarely."""

BARS = {"fractional": 1.05, "half_rows": 0.92, "bottom_half": 0.70, "top_two_only": 0.60}
"""The greatest acceptable median ratio of each case."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run measures on. width: of the model, a multiple of 64. amp: bfloat16 autocast."""

    device: str = "cpu"
    width: int = 384
    tokens: int = 128
    amp: bool = False
    engine: str = "fused"
    pairs: int = 9

    def synchronize(self) -> None:
        """Wait for the device, so that a clock tells the time of its work."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)


class Block(nn.Module):
    """Pre-norm attention and MLP: [B, T, width] -> [B, T, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, tokens, 3, width // HEAD_WIDTH, HEAD_WIDTH)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """Byte-level language model: [B, T] -> [B, T, VOCABULARY]."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def bands(model: nn.Module) -> tuple[Band, ...]:
    """Return a band for the output, one for each block from the top, and one for the embeddings."""
    names = [name for name, _ in model.named_parameters()]
    groups = [("norm.", "head."), *((f"blocks.{i}.",) for i in reversed(range(BLOCKS)))]
    groups.append(("tokens.", "positions."))
    return tuple(
        Band(f"band_{number}", (), tuple(name for name in names if name.startswith(group)))
        for number, group in enumerate(groups)
    )


def cases() -> dict[str, Tensor | None]:
    """Return the weights [BATCH, bands] of each case; band 0 is the output, the last the embeddings."""
    count = BLOCKS + 2
    ones = torch.ones(BATCH, count, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    half_rows, bottom_half, top_two_only = ones.clone(), ones.clone(), ones.clone()
    half_rows[: BATCH // 2, 3:] = 0
    bottom_half[:, 1 + BLOCKS // 2 :] = 0
    top_two_only[:, 3:] = 0
    return {
        "all_ones": ones,
        "fractional": 0.1 + 0.8 * torch.rand(BATCH, count, dtype=torch.float64, generator=generator),
        "half_rows": half_rows,
        "half_rows_scattered": half_rows[torch.randperm(BATCH, generator=generator)],
        "random_mask": (torch.rand(BATCH, count, generator=generator) < 0.5).double(),
        "bottom_half": bottom_half,
        "top_two_only": top_two_only,
        "whole_governor": None,
    }


def losses_of(model: nn.Module, x: Tensor, y: Tensor, setting: Setting) -> Tensor:
    """Return one loss per example [B]."""
    with torch.autocast(torch.device(setting.device).type, torch.bfloat16, enabled=setting.amp):
        logits = model(x)
    losses = functional.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction="none")
    return losses.view(y.shape).mean(1)


def plain_step(model: nn.Module, setting: Setting) -> Step:
    """Return an ordinary training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        losses_of(model, x, y, setting).mean().backward()
        optimizer.step()

    return step


def governed_step(model: nn.Module, weights: Tensor, setting: Setting) -> Step:
    """Return a training step under weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    masks = make_engine(model, bands(model), setting.engine)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        masks.arm(weights)
        masks.backward(losses_of(model, x, y, setting), BATCH)
        optimizer.step()

    return step


@contextmanager
def governor_step(model: nn.Module, setting: Setting) -> Iterator[Step]:
    """Give a training step under a governor with a ledger on disk."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    program = compile_policy(parse_policy(POLICY), ModelMap.from_module(model))
    batch = [{"id": f"example {number}", "kind": "ab"[number % 2]} for number in range(BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(Path(folder, "run.ledger"), signer=Signer.generate("benchmark"))
        with Governor(program, model, optimizer, ledger=ledger, engine=setting.engine) as governor:

            def step(x: Tensor, y: Tensor) -> None:
                with governor.step(batch) as proposal:
                    proposal.backward(losses_of(model, x, y, setting))

            yield step


def ratios(plain: Step, governed: Step, setting: Setting) -> Iterator[tuple[float, float]]:
    """Yield the seconds of a plain and of a governed step, for each pair after the warm-up pairs."""
    for number in range(setting.pairs + WARM_UP):
        x, y = torch.randint(VOCABULARY, (2, BATCH, setting.tokens)).to(setting.device)
        seconds = {}
        order = [("plain", plain), ("governed", governed)]
        for name, step in order if number % 2 else reversed(order):
            setting.synchronize()
            start = time.perf_counter()
            step(x, y)
            setting.synchronize()
            seconds[name] = time.perf_counter() - start
        if number >= WARM_UP:
            yield seconds["plain"], seconds["governed"]


def measure(weights: Tensor | None, setting: Setting) -> dict[str, float]:
    """Return the median ratio of a case with its quartiles and the median seconds of a plain step.

    weights: [BATCH, bands] for the engine alone; None: the whole governor.
    """
    torch.manual_seed(0)
    model = GPT(setting.width, setting.tokens).to(setting.device)
    plain, copy = plain_step(model, setting), deepcopy(model)
    if weights is None:
        with governor_step(copy, setting) as governed:
            times = list(ratios(plain, governed, setting))
    else:
        times = list(ratios(plain, governed_step(copy, weights, setting), setting))
    quotients = sorted(governed / plain for plain, governed in times)
    low, median, high = statistics.quantiles(quotients, n=4, method="inclusive")
    return {
        "ratio": round(median, 4),
        "quartile_1": round(low, 4),
        "quartile_3": round(high, 4),
        "plain_seconds": round(statistics.median(plain for plain, _ in times), 4),
    }


def options_of() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=sorted(cases()), action="append")
    parser.add_argument("--engine", choices=("fused", "split"), default="fused")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    return parser.parse_args()


def main() -> None:
    """Measure every case; write the results where all were."""
    options = options_of()
    torch.set_num_threads(options.threads)
    setting = Setting(
        options.device, options.width, options.tokens, options.amp, options.engine, options.pairs
    )
    own_shape = setting == Setting(engine=setting.engine, pairs=setting.pairs)
    results: dict[str, dict[str, float]] = {}
    for name, weights in cases().items():
        if options.only and name not in options.only:
            continue
        results[name] = measure(weights, setting)
        bar = f"  bar {BARS[name]:.2f}" if name in BARS and own_shape else ""
        spread = f"{results[name]['quartile_1']:.3f}-{results[name]['quartile_3']:.3f}"
        print(f"{name:20s} {results[name]['ratio']:.3f}  ({spread}){bar}", flush=True)
    if not options.only:
        write(setting, options.threads, results, own_shape)


def write(setting: Setting, threads: int, results: dict[str, dict[str, float]], own_shape: bool) -> None:
    """Write the results; those of another device or shape under a name that says so."""
    figures: dict[str, object] = {"engine": setting.engine, "threads": threads, "pairs": setting.pairs}
    name, kind = "step_time", torch.device(setting.device).type
    if own_shape:
        figures["bars"] = BARS
    else:
        precision = "bf16" if setting.amp else "fp32"
        name += f"_{kind}_{setting.width}x{setting.tokens}_{precision}"
        figures |= {"width": setting.width, "tokens": setting.tokens, "amp": setting.amp}
    if kind == "cuda":
        figures["accelerator"] = torch.cuda.get_device_name(setting.device)
    write_results(name, {**figures, "ratios": results}, ["torch"])


if __name__ == "__main__":
    main()
