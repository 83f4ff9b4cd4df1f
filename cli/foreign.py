"""Objects in the user's own modules, named on the command line as MODULE:NAME. Importing runs their code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from gradwarden.cli.failures import InputError


def need_torch(what: str) -> None:
    """Raise InputError where torch is not installed."""
    try:
        import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError(
            f"`{what}` needs torch, which is not installed", help="pip install 'gradwarden[train]'"
        ) from None


def split_target(target: str, form: str, example: str) -> tuple[str, str]:
    """Return the module and the name in it. Raises InputError."""
    name, colon, path = target.partition(":")
    if not (colon and name and path):
        raise InputError(f"`{target}` is not {form}", help=example)
    return name, path


def named_object(name: str, path: str) -> Any:
    """Import a module, looked for in the current directory first, and return what a path in it names."""
    sys.path.insert(0, os.getcwd())
    return _attribute(_import(name), name, path)


def _import(name: str) -> Any:
    try:
        return foreign(f"`{name}` could not be imported", import_module, name)
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


def foreign(failure: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call code of the user's. Whatever it raises is told as a fault of that code."""
    try:
        return function(*args)
    except Exception as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{failure}: {detail}", help="`--debug` shows the traceback") from error
