"""One check over every kind of device there is here, each by its own real way.

This machine by both workers, an emulated Raspberry Pi by a real sshd that runs on it, a phone by
the real adb client and a double of its daemon, and a phone's page in a real headless Chromium.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import armpi
import pytest
from adbd import Adbd
from pages import ASSETS, MISSING
from test_adb import server  # noqa: F401
from test_chain import TRAIN, draw, script

from hetero.devices import _native
from hetero.errors import DeviceError
from hetero.report import Report

pytestmark = pytest.mark.slow

PRECISIONS = ("fp32", "int8")
#: What these models, trained for a moment, keep for certain: every device gives what PyTorch gives.
LIMITS = """
[[limit]]
measurement = "cosine_worst"
precision = "fp32"
at_least = 0.9999
why = "a float file computes the same function, on every processor"

[[limit]]
measurement = "cosine_worst"
precision = "int8"
at_least = 0.9
why = "int8 rounds"

[[limit]]
measurement = "query_negative_flip_rate"
precision = "fp32"
at_most = 0.0
why = "queries that were right stay right"

[[limit]]
measurement = "size"
at_most = 8
why = "a small app"
"""


@pytest.fixture(scope="module")
def pi(own_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[armpi.Board]:
    """An emulated Raspberry Pi 5 with a running SSH server."""
    if why := armpi.missing():
        pytest.skip(why)
    try:
        board = armpi.Board(tmp_path_factory.mktemp("pi"))
    except DeviceError as error:
        pytest.skip(str(error))
    board.start()
    yield board
    board.stop()


@pytest.fixture(scope="module")
def phone(server: None) -> Iterator[Adbd]:  # noqa: F811
    adbd = Adbd()
    adbd.start()
    yield adbd
    adbd.stop()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with gallery/, and query/ in three formats and two precisions."""
    for module in ("torch", "onnxruntime", "onnx", "litert_torch", "litert_quantizer",
                   "coremltools", "asyncssh", "pymicro_wakeword"):  # fmt: skip
        pytest.importorskip(module, reason="needs every extra")
    home = tmp_path_factory.mktemp("mixed")
    pictures = draw(home / "pictures")
    gallery, query = home / "gallery", home / "query"
    small = ("--backbone", "mobilenet:width=0.25", "--views", 2, *TRAIN)
    large = ("--backbone", "resnet:width=4", "--dim", 16, *TRAIN)
    script("train", "gallery", "-d", pictures, *large, "-o", gallery)
    script("train", "query", gallery, *small, "-o", query)
    files = [x for f in ("onnx", "tflite", "coreml") for x in ("-f", f)]
    files += [x for p in PRECISIONS for x in ("-p", p)]
    script("export", query, *files, "-q")
    (home / "limits.toml").write_text(LIMITS)
    return home


@dataclass(frozen=True)
class Checked:
    """What one check left behind."""

    code: int
    said: str
    folder: Path
    devices: dict[str, str]

    @property
    def report(self) -> Report:
        return Report.load(self.folder / "report.json")

    @property
    def raw(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "report.json").read_text()))


@pytest.fixture(scope="module")
def checked(
    bundles: Path,
    pi: armpi.Board,
    phone: Adbd,
    tmp_path_factory: pytest.TempPathFactory,
) -> Checked:
    """The one run; the tests look at what it left."""
    if MISSING:
        pytest.skip(MISSING)
    if len(_native.libraries()) < 2:
        pytest.skip("the native worker's two runtimes are not installed")
    at = tmp_path_factory.mktemp("phone")
    specs = {
        "desk": "local",
        "native": "local:worker=native",
        "garage": f"ssh:{pi.address}",
        "phone": f"adb:127.0.0.1:{phone.port},folder={at}",
        "page": f"browser:port=0,chromium=yes,assets={ASSETS}",
    }
    inventory = bundles / "devices.toml"
    lines = [f'{name} = "{spec}"' for name, spec in specs.items()]
    inventory.write_text("\n".join(["[devices]", *lines, ""]))
    call = [
        sys.executable, "-m", "hetero.cli", "check", str(bundles / "query"),
        "--gallery", str(bundles / "gallery"), "--length", "quick", "--fleet",
        "--inventory", str(inventory), "--limits", str(bundles / "limits.toml"),
        "-o", str(bundles / "check"),
    ]  # fmt: skip
    done = subprocess.run(
        call,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)},
    )
    return Checked(done.returncode, done.stdout + done.stderr, bundles / "check", specs)


def test_x(checked):
    print(checked.said)
    print(checked.code, checked.folder)
    import shutil

    shutil.copytree(checked.folder, "/tmp/h/check", dirs_exist_ok=True)
