"""Time of a governed training step over the plain one, on a small GPT.

Six blocks, width 384, 128 tokens, batch 16, float32, AdamW; forward, backward and optimizer step. Plain and
governed steps alternate, each on its own copy of the model, and the median of the pairs' ratios is reported
with its quartiles. The cases time the mask engine; `whole_governor` times all of it, admission, gates and a
ledger on disk included, under a policy with fractional weights.

    python -m benchmarks.step_time [--pairs 9] [--threads 2] [--only CASE]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
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

BLOCKS, WIDTH, HEADS, TOKENS, BATCH, VOCABULARY = 6, 384, 6, 128, 16, 256

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


class Block(nn.Module):
    """Pre-norm attention and MLP: [B, T, WIDTH] -> [B, T, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, tokens, 3, HEADS, WIDTH // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """Byte-level language model: [B, T] -> [B, T, VOCABULARY]."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
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


def losses_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return one loss per example [B]."""
    logits = model(x)
    return functional.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)


def plain_step(model: nn.Module) -> Step:
    """Return an ordinary training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        losses_of(model, x, y).mean().backward()
        optimizer.step()

    return step


def governed_step(model: nn.Module, weights: Tensor, engine: str) -> Step:
    """Return a training step under weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    masks = make_engine(model, bands(model), engine)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        masks.arm(weights)
        masks.backward(losses_of(model, x, y), BATCH)
        optimizer.step()

    return step


@contextmanager
def governor_step(model: nn.Module, engine: str) -> Iterator[Step]:
    """Give a training step under a governor with a ledger on disk."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    program = compile_policy(parse_policy(POLICY), ModelMap.from_module(model))
    batch = [{"id": f"example {number}", "kind": "ab"[number % 2]} for number in range(BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(Path(folder, "run.ledger"), signer=Signer.generate("benchmark"))
        with Governor(program, model, optimizer, ledger=ledger, engine=engine) as governor:

            def step(x: Tensor, y: Tensor) -> None:
                with governor.step(batch) as proposal:
                    proposal.backward(losses_of(model, x, y))

            yield step


def ratios(plain: Step, governed: Step, pairs: int) -> Iterator[tuple[float, float]]:
    """Yield the seconds of a plain and of a governed step, for each pair after the warm-up pairs."""
    for number in range(pairs + WARM_UP):
        x, y = torch.randint(VOCABULARY, (2, BATCH, TOKENS))
        seconds = {}
        order = [("plain", plain), ("governed", governed)]
        for name, step in order if number % 2 else reversed(order):
            start = time.perf_counter()
            step(x, y)
            seconds[name] = time.perf_counter() - start
        if number >= WARM_UP:
            yield seconds["plain"], seconds["governed"]


def measure(weights: Tensor | None, pairs: int, engine: str) -> dict[str, float]:
    """Return the median ratio of a case with its quartiles and the median seconds of a plain step.

    weights: [BATCH, bands] for the engine alone; None: the whole governor.
    """
    torch.manual_seed(0)
    model = GPT()
    plain, copy = plain_step(model), deepcopy(model)
    if weights is None:
        with governor_step(copy, engine) as governed:
            times = list(ratios(plain, governed, pairs))
    else:
        times = list(ratios(plain, governed_step(copy, weights, engine), pairs))
    quotients = sorted(governed / plain for plain, governed in times)
    low, median, high = statistics.quantiles(quotients, n=4, method="inclusive")
    return {
        "ratio": round(median, 4),
        "quartile_1": round(low, 4),
        "quartile_3": round(high, 4),
        "plain_seconds": round(statistics.median(plain for plain, _ in times), 4),
    }


def main() -> None:
    """Measure every case; write the results where all were."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=sorted(cases()), action="append")
    parser.add_argument("--engine", choices=("fused", "split"), default="fused")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, dict[str, float]] = {}
    for name, weights in cases().items():
        if options.only and name not in options.only:
            continue
        results[name] = measure(weights, options.pairs, options.engine)
        bar = f"  bar {BARS[name]:.2f}" if name in BARS else ""
        spread = f"{results[name]['quartile_1']:.3f}-{results[name]['quartile_3']:.3f}"
        print(f"{name:20s} {results[name]['ratio']:.3f}  ({spread}){bar}", flush=True)
    if not options.only:
        figures = {"engine": options.engine, "threads": options.threads, "pairs": options.pairs}
        write_results("step_time", {**figures, "bars": BARS, "ratios": results}, ["torch"])


if __name__ == "__main__":
    main()
