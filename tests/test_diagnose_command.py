"""`hetero diagnose`, from the folder an app wrote to the exit code and the repro folder."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from toys import QUERY, SIZE, picture

from hetero.bundle import Bundle, Model, space_digest
from hetero.diagnose import canaries
from hetero.errors import ConfigError
from hetero.preprocess import Preprocess, decode
from hetero.progress import Reporter
from hetero.space import Space
from hetero.stages import diagnosing
from hetero.stages.diagnosing import DiagnoseOptions

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

SPEC = Preprocess(SIZE)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    """A gallery bundle with random weights, which is a query bundle of its own space as well."""
    from hetero import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.build(QUERY, 16, SIZE)
        pixels = np.stack([picture(n, which) for n in range(8) for which in range(2)])
        for _ in range(20):
            net(torch.from_numpy(SPEC.tensor(pixels)))
    net.eval()
    ids = "\n".join(f"p{i}" for i in range(len(pixels))).encode()
    return Bundle.create(
        tmp_path_factory.mktemp("bundle") / "b",
        role="gallery",
        space=Space("toy", space_digest("0" * 64, SPEC, 16), 16),
        model=Model(backbone=QUERY, dim=16, parameters=1, macs=1),
        preprocess=SPEC,
        recipe={},
        tensors={
            "weights": models.arrays(net),
            "probe": {
                "ids": np.frombuffer(ids, dtype=np.uint8),
                "pixels": pixels,
                "vectors": models.embed_pixels(net, SPEC, pixels),
            },
        },
    )


def write_trace(bundle: Bundle, folder, change=lambda rgb: rgb):
    """What an app writes whose colours are changed like this."""
    from hetero import models

    folder.mkdir()
    pictures = canaries(bundle.probe(), SPEC)
    pixels = np.stack([SPEC.pixels(change(decode(p.data))) for p in pictures])
    np.save(folder / "embedding.npy", models.embed_pixels(models.load(bundle), SPEC, pixels))
    (folder / "names.txt").write_text("\n".join(p.name for p in pictures))
    return folder


def solve(bundle, tmp_path, **options):
    return diagnosing.diagnose(
        bundle, bundle, tmp_path / "out", DiagnoseOptions(**options), reporter=Reporter(quiet=True)
    )


def test_a_faulty_app_gets_a_cause_a_page_and_a_repro_that_runs(bundle, tmp_path):
    trace = write_trace(bundle, tmp_path / "trace", lambda rgb: rgb[..., ::-1])
    found = solve(bundle, tmp_path, trace=trace)
    assert (found.verdict, found.stage) == ("fault", "colour")
    written = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert (written["schema"], written["stage"]) == ("hetero.diagnosis/1", "colour")
    page = (tmp_path / "out" / "diagnosis.md").read_text()
    assert page.startswith("# Diagnosis: fault, colour\n")
    assert "| total |" in page
    repro = tmp_path / "out" / "repro"
    assert (repro / found.smallest).read_bytes()
    lines = (repro / "compare.py").read_text().splitlines()
    assert len(lines) <= 25
    done = subprocess.run(
        [sys.executable, "compare.py"], cwd=repro, capture_output=True, text=True, check=True
    )
    cosine = float(done.stdout.split("cosine: ")[1].split()[0])
    assert cosine < 1 - 1e-5
    right, wrong = np.load(repro / "reference.npy"), np.load(repro / "device.npy")
    assert cosine == pytest.approx(
        right @ wrong / np.linalg.norm(right) / np.linalg.norm(wrong), abs=1e-6
    )


def test_a_healthy_app_is_called_healthy_and_gets_no_repro(bundle, tmp_path):
    found = solve(bundle, tmp_path, trace=write_trace(bundle, tmp_path / "trace"))
    assert (found.verdict, found.faults) == ("healthy", ())
    assert not (tmp_path / "out" / "repro").exists()
    assert found.recall_lost == 0


def test_without_a_file_and_without_a_trace_there_is_nothing_to_diagnose(bundle, tmp_path):
    with pytest.raises(ConfigError, match="name the bundle's file with --file"):
        solve(bundle, tmp_path)
    with pytest.raises(ConfigError, match="--device local: name the file it runs"):
        solve(bundle, tmp_path, device="local", trace=tmp_path)
    with pytest.raises(ConfigError, match="write FORMAT:PRECISION; there are: none"):
        solve(bundle, tmp_path, file="onnx")


def test_the_command_exits_with_the_verdict(bundle, tmp_path):
    from typer.testing import CliRunner

    from hetero.cli import app

    def call(*arguments: str):
        return CliRunner().invoke(app, ["diagnose", str(bundle.root), *arguments])

    done = call("--canaries", str(tmp_path / "canaries"))
    assert done.exit_code == 0
    names = (tmp_path / "canaries" / "names.txt").read_text().split()
    assert len(names) > 100
    assert all((tmp_path / "canaries" / n).exists() for n in names)
    healthy = write_trace(bundle, tmp_path / "healthy")
    gallery = ["--gallery", str(bundle.root), "-q", "-o", str(tmp_path / "out")]
    assert call(*gallery, "--trace", str(healthy)).exit_code == 0
    trace = write_trace(bundle, tmp_path / "inverted", lambda rgb: 255 - rgb)
    done = call(*gallery, "--trace", str(trace), "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["faults"][0]["cause"] == "colours are inverted"
    rows = np.random.default_rng(0).normal(size=(len(names), 16)).astype("f4")
    np.save(trace / "embedding.npy", rows)
    assert call(*gallery, "--trace", str(trace)).exit_code == 3


def test_a_gallery_is_asked_for(bundle):
    from typer.testing import CliRunner

    from hetero.cli import app

    done = CliRunner().invoke(app, ["diagnose", str(bundle.root)])
    assert isinstance(done.exception, ConfigError)
    assert "--gallery" in str(done.exception)
