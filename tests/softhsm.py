"""A device for keys: a token of SoftHSM, which is one in software by OpenDNSSEC."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "4711 and more"

needed = pytest.mark.skipif(
    shutil.which("softhsm2-util") is None or not Path(MODULE).exists(),
    reason="SoftHSM is not installed: `apt-get install softhsm2`",
)


@cache
def make_token() -> tempfile.TemporaryDirectory[str]:
    """Make the token `ward`. A process reads the configuration once, so it has one token for all tests."""
    folder = tempfile.TemporaryDirectory(prefix="softhsm")
    Path(folder.name, "tokens").mkdir()
    settings = Path(folder.name, "softhsm2.conf")
    settings.write_text(f"directories.tokendir = {folder.name}/tokens\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(settings)
    make = ["softhsm2-util", "--init-token", "--free", "--label", "ward", "--so-pin", "0000", "--pin", PIN]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    return folder


def uri(label: str, token: str = "ward", module: str = MODULE) -> str:
    return f"pkcs11:token={token};object={label}?module-path={module}"
