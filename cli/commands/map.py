"""`gradwarden map`: derive a model map from a live module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.failures import InputError
from gradwarden.cli.files import write_text
from gradwarden.cli.foreign import foreign, named_object, need_torch, split_target
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, emit_table, format_option

if TYPE_CHECKING:
    from gradwarden.policy.model_map import ModelMap


@verb("map")
@click.argument("target", metavar="MODULE:FACTORY")
@click.option("-o", "--output", type=FILE, required=True, help="Where to write the map.")
@format_option("text", "json")
def command(target: str, output: Path, output_format: str) -> int:
    """Derive a model map: every parameter of a model with its distance from the output.

    MODULE:FACTORY names a Python module, found from the current directory, and in it either an `nn.Module`
    or something that returns one when called without arguments. The module is imported, so its code runs.
    The saved map lets policies be checked and compiled without the model and without torch.

    \b
    Examples:
      gradwarden map train:build_model -o model.yaml
      gradwarden check policies --model-map model.yaml

    \b
    Exit status: 0 the map was written, 2 it was not.
    """
    module = _module(target)
    from gradwarden.runtime.model_map import ModelMap

    derived = ModelMap.from_module(module)
    write_text(output, derived.to_yaml())
    if output_format == "json":
        emit_json(
            {
                "output": str(output),
                "model": derived.model,
                "digest": derived.digest,
                "blocks": derived.blocks,
                "layers": len(derived.layers),
                "parameters": len(derived.parameters),
            }
        )
        return 0
    _show(derived)
    click.echo(f"wrote {output}: {len(derived.parameters):,} parameters of {derived.model}")
    return 0


def _module(target: str) -> Any:
    """Return the `nn.Module` that MODULE:FACTORY names."""
    name, path = split_target(
        target, "MODULE:FACTORY", "for a function build_model in train.py: train:build_model"
    )
    need_torch("gradwarden map")
    from torch import nn

    factory = named_object(name, path)
    module = factory
    if not isinstance(factory, nn.Module):
        if not callable(factory):
            raise InputError(f"`{target}` is neither a model nor something that can be called")
        module = foreign(f"`{target}` could not be called", factory)
    if not isinstance(module, nn.Module):
        raise InputError(f"`{target}` gave an object of type `{type(module).__name__}`, not an `nn.Module`")
    return module


def _show(derived: ModelMap) -> None:
    rows = [
        (
            layer.name or "(root)",
            "" if layer.block is None else str(layer.block),
            f"{layer.depth / 10_000:g}%",
            str(len(layer.parameters)),
        )
        for layer in derived.layers
    ]
    emit_table(("layer", "block", "depth", "parameters"), rows, numeric=(1, 2, 3))
