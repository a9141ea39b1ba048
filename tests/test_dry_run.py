"""A dry run reads the inputs, says what a job takes, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("torch", reason="probes train some steps; PyTorch is not installed")

from hetero.cli import app
from hetero.errors import ConfigError
from hetero.stages.estimating import Estimate, spoken


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty classes of four pictures."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for label in range(40):
        (folder / f"c{label:02}").mkdir()
        for number in range(4):
            pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"c{label:02}" / f"{number}.png")
    return folder


def asked(*arguments: str | Path) -> dict:
    done = CliRunner().invoke(app, [*map(str, arguments), "--dry-run", "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.stdout)


def test_a_training_is_measured_by_some_steps_and_nothing_is_written(photos, tmp_path):
    from hetero import data

    line = ("train", "gallery", "--data", photos, "--backbone", "resnet:width=4", "--dim", "8")
    line = (*line, "--batch", "8", "-o", tmp_path / "out")
    short, long = (asked(*line, "--epochs", n) for n in ("2", "20"))
    images = data.load(str(photos))
    count = len(images.rows("train"))
    assert short["pictures"].startswith(f"{count} to train on")
    assert short["epochs"] == f"2 of {count // 8} steps of 8"
    assert short["total_s"] == pytest.approx(sum(short["seconds"].values()))
    assert set(short["seconds"]) == {"reading", "training", "validation"}
    assert long["disk_bytes"] == short["disk_bytes"] > 0
    assert not list(tmp_path.iterdir())


def test_what_would_be_refused_is_refused_by_the_dry_run(photos, tmp_path):
    with pytest.raises(ConfigError, match="do not fill one batch of 5000; lower --batch"):
        asked("train", "gallery", "--data", photos, "--batch", "5000", "-o", tmp_path / "out")
    with pytest.raises(ConfigError, match="nothing"):
        asked("train", "gallery", "--data", photos, "--batch", "8", "--backbone", "nothing")


def test_dry_runs_with_an_old_model_say_what_would_be_trained_and_how_many(photos, tmp_path):
    old = tmp_path / "old"
    line = ("--data", photos, "--backbone", "resnet:width=4", "--epochs", "1", "--batch", "8")
    train = ("train", "gallery", *line, "--dim", "8", "--keep-going", "-q", "-o", old)
    made = CliRunner().invoke(app, [*map(str, train)])
    assert made.exit_code == 0, made.output
    query = asked("train", "query", old, *line, "-o", tmp_path / "out")
    assert query["job"] == "train a query model"
    new = asked("upgrade", "train", "--old", old, *line, "-o", tmp_path / "out")
    assert new["job"] == "train a gallery model"
    assert "models" not in new
    assert new["seconds"]["gallery vectors"] > 0
    grid = ("--sweep", "--influences", "1,3", "--regressions", "0,10", "--no-free")
    swept = asked("upgrade", "train", "--old", old, *line, *grid, "-o", tmp_path / "out")
    assert swept["models"] == "4"
    # Checkpoints are each model's own; the old model's vectors are stored once.
    weights = swept["disk_bytes"] - new["disk_bytes"]
    parameters = int(new["model"].split(", ")[1].split()[0].replace(",", ""))
    assert weights == 3 * parameters * 4 * 4
    assert sorted(x.name for x in tmp_path.iterdir()) == ["old"]


def test_a_part_that_is_not_known_makes_the_whole_unknown():
    known = Estimate("embed", {}, {"reading": 30.0, "embedding": 90.0}, 2**20)
    assert known.total_s == 120
    assert "  time: about 2 min (reading 30 s, embedding 2 min)" in known.lines()
    assert "  disk: about 1.0 MiB" in known.lines()
    part = Estimate("embed", {}, {"reading": 30.0, "embedding": None}, unknown="how fast it is")
    assert part.total_s is None
    assert "  time: unknown (reading 30 s, embedding unknown)" in part.lines()
    assert part.lines()[-1] == "  not known: how fast it is"


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_a_time_has_the_unit_that_suits_it(seconds, text):
    assert spoken(seconds) == text
