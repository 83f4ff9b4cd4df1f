"""`gradwarden map`: derive a model map from a live module."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.failures import InputError
from gradwarden.cli.files import write_text
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
    name, colon, path = target.partition(":")
    if not (colon and name and path):
        raise InputError(
            f"`{target}` is not MODULE:FACTORY",
            help="for a function build_model in train.py: train:build_model",
        )
    try:
        from torch import nn
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError(
            "`gradwarden map` needs torch, which is not installed", help="pip install 'gradwarden[train]'"
        ) from None
    sys.path.insert(0, os.getcwd())
    factory = _attribute(_import(name), name, path)
    module = factory
    if not isinstance(factory, nn.Module):
        if not callable(factory):
            raise InputError(f"`{target}` is neither a model nor something that can be called")
        module = _foreign(f"`{target}` could not be called", factory)
    if not isinstance(module, nn.Module):
        raise InputError(f"`{target}` gave an object of type `{type(module).__name__}`, not an `nn.Module`")
    return module


def _import(name: str) -> Any:
    try:
        return _foreign(f"`{name}` could not be imported", import_module, name)
    except InputError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name == name.partition(".")[0]:
            raise InputError(
                f"there is no module `{name}`",
                help="it is looked for in the current directory and on PYTHONPATH",
            ) from None
        raise


def _attribute(module: Any, name: str, path: str) -> Any:
    from gradwarden.policy.errors import did_you_mean

    value = module
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise InputError(f"`{name}` has no `{part}`", help=did_you_mean(part, dir(value))) from None
    return value


def _foreign(failure: str, function: Any, *args: Any) -> Any:
    """Call code of the user's. Whatever it raises is told as a fault of that code."""
    try:
        return function(*args)
    except Exception as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{failure}: {detail}", help="`--debug` shows the traceback") from error


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
