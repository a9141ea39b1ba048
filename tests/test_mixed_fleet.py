"""One check over every kind of device there is here, each by its own real way.

This machine by both workers, an emulated Raspberry Pi by a real sshd that runs on it, a phone by
the real adb client and a double of its daemon, and a phone's page in a real headless Chromium.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import armpi
import pytest
from adbd import Adbd
from pages import ASSETS, MISSING
from test_adb import server  # noqa: F401
from test_chain import TRAIN, draw, script

from hetero.devices import _native
from hetero.errors import DeviceError
from hetero.report import REFERENCE, Report
from hetero.space import Embeddings

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

    @property
    def report(self) -> Report:
        return Report.load(self.folder / "report.json")


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
        "pi": f"ssh:{pi.address}",
        "adb-double": f"adb:127.0.0.1:{phone.port},folder={at}",
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
    return Checked(done.returncode, done.stdout + done.stderr, bundles / "check")


#: Which device gives what, by what kind of execution, and the worker that says so.
HOW = {
    "desk": ("native", "python"),
    "native": ("native", "native"),
    "pi": ("emulated", "python"),
    "adb-double": ("native", "native"),
    "page": ("emulated", "browser"),
}


def test_every_file_ran_wherever_it_can_and_each_cell_says_by_what(checked: Checked) -> None:
    assert checked.code == 0, checked.said
    assert checked.report.verdict == "pass"
    cells = {(c.device, c.format, c.precision): c for c in checked.report.cells}
    wanted = {(d, f, p): HOW[d][0] for d in HOW for f in ("onnx", "tflite") for p in PRECISIONS}
    wanted |= {(REFERENCE, "coreml", p): "reference" for p in PRECISIONS}
    assert {key: cell.execution for key, cell in cells.items()} == wanted
    for (device, format, _), cell in cells.items():
        assert cell.runtime, cell
        if device == "pi":
            assert (cell.cpu, cell.features) == ("Cortex-A76", ("asimd", "dotprod", "fp16"))
        if device == "page":
            assert cell.provider.startswith("wasm")
        # What the double of a phone runs, this machine runs; it does not pass for a phone.
        if device == "adb-double":
            assert cell.cpu == cells["native", format, "fp32"].cpu
    (away,) = {(x.format, x.obstacle) for x in checked.report.not_run}
    assert away == ("coreml", "unavailable")


def test_the_workers_themselves_say_on_what_they_ran(checked: Checked) -> None:
    for device, (execution, worker) in HOW.items():
        folders = list((checked.folder / "runs").glob(f"{device}-[lo]*"))
        assert len(folders) == 4, device
        for folder in folders:
            lines = (folder / "log.jsonl").read_text().splitlines()
            events = {x["hetero"]: x for x in map(json.loads, lines)}
            hello, done = events["hello"], events["done"]
            assert hello["worker"] == worker
            assert done["out_bytes"] == (folder / "out.bin").stat().st_size
            if device == "pi":  # noticed by the worker: its address does not say so
                assert hello["execution"] == execution
                assert hello["system"].endswith("aarch64")


def test_a_file_gives_on_every_device_what_it_gives_in_pytorch(checked: Checked) -> None:
    # From the raw vectors, not by what the report says of them.
    folder = checked.folder / "embeddings"
    reference = Embeddings.load(folder / "query-pytorch-fp32.safetensors")
    places = [(d, f) for d in HOW for f in ("onnx", "tflite")] + [(REFERENCE, "coreml")]
    for device, format in places:
        for precision, least in (("fp32", 0.9999), ("int8", 0.9)):
            there = Embeddings.load(folder / f"{device}-{format}-{precision}.safetensors")
            assert len(there.ids) >= 4
            here = reference.take(there.ids)
            cosine = (there.vectors.astype("f8") * here.vectors).sum(1)
            assert cosine.min() >= least, (device, format, precision)
    pairs = [x for x in checked.report.agreement if x.precision == "fp32"]
    assert {(x.a, x.b) for x in pairs if x.format == "onnx"} >= {
        ("pi", "adb-double"),
        ("pi", "page"),
        ("", "pi"),
    }
    assert not [x for x in pairs if x.apart]


def test_no_emulated_time_is_given_as_one(checked: Checked) -> None:
    timed = {
        (x.device, x.name): x.doubt for x in checked.report.measurements if "latency" in x.name
    }
    for device in ("desk", "native", "adb-double"):
        assert (device, "latency_p50") in timed
    for (device, name), doubt in timed.items():
        if HOW.get(device, ("",))[0] == "emulated":
            assert doubt.startswith("invalid"), (device, name)


def test_the_page_shows_each_device_with_its_kind_of_execution(checked: Checked) -> None:
    page = (checked.folder / "report.html").read_text()
    shown = re.findall(r'data-label="Execution">(\w+)<', page)
    assert Counter(shown) == {"native": 12, "emulated": 8, "reference": 2}
    for device in HOW:
        assert device in page
