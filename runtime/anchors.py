"""Anchors: what the parameters of a maintained band were when its rule came into force.

An anchor is kept in memory beside the parameters, in their type and on their device, and saved beside the
ledger, as safetensors by parameter name, so that it outlasts the process:

    <ledger>.anchor-<first 16 hex digits of the file's SHA-256>.safetensors

The ledger names the file and its whole digest. A file is named after its content, so none is ever overwritten
by another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradwarden.runtime.checkpoints import save_whole
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import LedgerError, MaskError, RuntimeGovernanceError


@dataclass(frozen=True, slots=True)
class Anchor:
    """The anchor of one band. values: by parameter name. norm: of all together.

    file, digest: where it is saved, and the hex SHA-256 of that; empty where this process does not save it.
    """

    values: Mapping[str, Tensor]
    norm: float
    file: str = ""
    digest: str = ""


def distance(parameters: Iterable[Tensor], tensors: Iterable[Tensor]) -> float:
    """Return the L2 norm of a difference, summed in double precision; not finite where that is not."""
    with torch.no_grad():
        norms = [norm_of(p.detach() - a) for p, a in zip(parameters, tensors, strict=True)]
        return joint_norm(norms)


def anchor_norm(band: str, values: Iterable[Tensor]) -> float:
    """Return the norm of an anchor. Raises MaskError where no drift can be told from it."""
    with torch.no_grad():
        norm = joint_norm([norm_of(value.detach()) for value in values])
    if norm == 0.0:
        raise MaskError(
            f"the band `{band}` cannot be maintained: its parameters are zero, and drift is a share of them",
            help="let the rule come into force once the band has been trained (`from step N`)",
        )
    if not isfinite(norm):
        raise MaskError(f"the band `{band}` cannot be maintained: its parameters are not finite")
    return norm


def norm_of(tensor: Tensor) -> Tensor:
    """Return a norm; half precision would lose it, and a copy in double precision would cost memory."""
    kind = torch.promote_types(tensor.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=kind)
    return norm


def joint_norm(norms: Sequence[Tensor]) -> float:
    """Return the L2 norm of tensors whose own norms are given; 0 of none."""
    if not norms:
        return 0.0
    return float(torch.stack([norm.to("cpu", torch.float64) for norm in norms]).square().sum().sqrt())


# --- files --------------------------------------------------------------------------------------------------


def save_anchor(ledger: str, values: Mapping[str, Tensor]) -> tuple[str, str]:
    """Save an anchor durably beside a ledger; return the file's name and its digest. Raises LedgerError."""
    tensors = {name: value.contiguous() for name, value in values.items()}

    def named(digest: str) -> Path:
        return Path(f"{ledger}.anchor-{digest[:16]}.safetensors")

    def write(draft: Path) -> None:
        save_file(tensors, draft)

    try:
        digest = save_whole(Path(f"{ledger}.anchor"), "anchor of a band", write, file_digest, named)
    except RuntimeGovernanceError as error:
        raise LedgerError(error.message) from error
    return named(digest).name, digest


def load_anchor(ledger: str, file: str, digest: str) -> dict[str, Tensor]:
    """Read an anchor that a ledger names. Raises LedgerError where it is missing or is another one."""
    path = Path(ledger).with_name(Path(file).name)
    help = "restore the file that was written beside the ledger; no other values can stand for it"
    try:
        if file_digest(path) != digest:
            raise LedgerError(f"`{path}` is not the anchor that the ledger names", help=help)
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise LedgerError(f"cannot read the anchor `{path}`: {error}", help=help) from error


def fitting(loaded: Mapping[str, Tensor], parameters: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """Return loaded tensors in the type and on the device of the parameters that they are of.

    Raises LedgerError where a parameter is missing or has another shape or type.
    """
    for name, tensor in loaded.items():
        own = parameters.get(name)
        if own is None or own.shape != tensor.shape or own.dtype != tensor.dtype:
            raise LedgerError(
                f"the anchor `{file}` does not fit the model: it has another `{name}`",
                help="resume with the model that the run began with",
            )
    return {name: tensor.to(parameters[name].device) for name, tensor in loaded.items()}
