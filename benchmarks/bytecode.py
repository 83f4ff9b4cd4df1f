"""Lets the processes that a benchmark starts find compiled modules, as those of an installed package do.

`pip` compiles what it installs. A checkout has compiled modules only where Python may write them, and a stale
or forbidden cache (PYTHONDONTWRITEBYTECODE) would have each start compile some hundred modules anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

_FORBIDS, _FOLDER = "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"


@contextmanager
def compiled_modules() -> Iterator[None]:
    """Have processes started meanwhile keep what they compile in a folder of its own; the first one pays."""
    before = {name: os.environ.pop(name, None) for name in (_FORBIDS, _FOLDER)}
    try:
        with TemporaryDirectory() as folder:
            os.environ[_FOLDER] = folder
            yield
    finally:
        os.environ.pop(_FOLDER, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
