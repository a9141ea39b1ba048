"""The command line as a user runs it: the chain on a few pictures, then all that can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

import hetero
from hetero import cli
from hetero.errors import EXTRAS

pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("onnxruntime", reason="checking needs the extra 'onnx'")


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error that a user sees."""
        lines = [x for x in self.err.splitlines() if x.strip()]
        assert len(lines) == 1, f"expected one line, got {self.err!r}"
        assert lines[0].startswith("hetero: "), lines[0]
        assert "Traceback" not in self.err
        return lines[0]


Hetero = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Hetero:
    def call(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["hetero", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capfd.readouterr()
        code = done.value.code
        return Ran(code if isinstance(code, int) else 0, out, err)

    return call


def draw(folder: Path, classes: int = 14, each: int = 8) -> Path:
    """Pictures of coloured bars, a class a folder; noise makes them differ."""
    random = np.random.default_rng(0)
    for number in range(classes):
        home = folder / f"class{number:02d}"
        home.mkdir(parents=True)
        hue = random.integers(0, 256, 3)
        for at in range(each):
            picture = np.full((20, 24, 3), 255, np.uint8)
            picture[4 + number % 7 : 12 + number % 5, 3:20] = np.clip(
                hue + random.integers(-20, 20, 3), 0, 255
            )
            Image.fromarray(picture).save(home / f"{at}.png")
    return folder


def script(*words: object) -> None:
    """A command in a process of its own, which has to succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "hetero.cli", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr


TRAIN = ("--epochs", 2, "--batch", 16, "--keep-going", "-q")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures/, gallery/, query/ (ONNX fp32 exported) and control/."""
    home = tmp_path_factory.mktemp("chain")
    pictures = draw(home / "pictures")
    small = ("--backbone", "mobilenet:width=0.25", *TRAIN)
    script(
        "train",
        "gallery",
        "-d",
        pictures,
        "--backbone",
        "resnet:width=4",
        "--dim",
        16,
        *TRAIN,
        "-o",
        home / "gallery",
    )
    script("train", "gallery", "-d", pictures, "--dim", 16, *small, "-o", home / "control")
    script("train", "query", home / "gallery", "--views", 2, *small, "-o", home / "query")
    script("export", home / "query", "-f", "onnx", "-p", "fp32", "-q")
    return home


@pytest.fixture
def copy(chain: Path, tmp_path: Path) -> Path:
    """The same in a place where it may be damaged."""
    target = tmp_path / "chain"
    shutil.copytree(chain, target, ignore=shutil.ignore_patterns("pictures"))
    (target / "pictures").symlink_to(chain / "pictures")
    return target


def check(run: Hetero, home: Path, *words: object) -> Ran:
    return run(
        "check", home / "query", "--gallery", home / "gallery", "--length", "quick",
        "-o", home / "check", "-q", *words,
    )  # fmt: skip


# -- the chain ------------------------------------------------------------------------------------


def test_a_check_writes_all_reports_and_they_fit_the_schema(run: Hetero, copy: Path) -> None:
    ran = check(run, copy, "--control", copy / "control", "--json")
    assert ran.code in (0, 1), ran.err
    report = json.loads(ran.out)
    schema = json.loads((Path(hetero.__file__).parent / "report.schema.json").read_text())
    jsonschema.validate(report, schema)
    assert json.loads((copy / "check" / "report.json").read_text()) == report
    assert {p.name for p in (copy / "check").iterdir()} >= {
        "report.md",
        "report.html",
        "junit.xml",
        "runs",
    }
    names = {m["name"] for m in report["measurements"]}
    assert names >= {
        "heterogeneous_recall_at_1",
        "homogeneous_query_recall_at_1",
        "paragon_recall_at_1",
        "control_recall_at_1",
        "independent_recall_at_1",
        "cosine_worst",
        "query_negative_flip_rate",
        "latency_p50",
        "size",
    }


def test_the_exported_file_finds_what_pytorch_finds(run: Hetero, copy: Path) -> None:
    report = json.loads(check(run, copy, "--json").out)
    lost = [m for m in report["measurements"] if m["name"] == "recall_at_1_lost"]
    assert [m["outcome"] for m in lost] == ["pass"]
    assert lost[0]["value"] == pytest.approx(0, abs=0.002)


def test_every_latency_and_vector_is_on_disk(run: Hetero, copy: Path) -> None:
    check(run, copy)
    (latencies,) = (copy / "check" / "runs").rglob("lat.bin")
    assert np.fromfile(latencies, "<i8").min() > 0
    assert (copy / "check" / "embeddings" / "local-onnx-fp32.safetensors").exists()


def test_a_stored_report_is_judged_again_without_running(run: Hetero, copy: Path) -> None:
    assert check(run, copy).code == 0
    limits = copy / "limits.toml"
    limits.write_text('[[limit]]\nmeasurement = "size"\nat_most = 0.0001\n')
    shutil.rmtree(copy / "query")
    assert run("report", copy / "check", "--limits", limits, "-q").code == 1
    limits.write_text('[[limit]]\nmeasurement = "size"\nat_most = 100\n')
    assert run("report", copy / "check", "--limits", limits, "-q").code == 0


def test_a_failed_gate_exits_1(run: Hetero, copy: Path) -> None:
    (copy / "limits.toml").write_text(
        '[[limit]]\nmeasurement = "latency_p50"\nat_most = 0.0\nwhy = "nothing is that fast"\n'
    )
    ran = check(run, copy, "--limits", copy / "limits.toml")
    assert ran.code == 1
    assert "FAIL" in ran.out


def test_an_undecidable_limit_exits_3(run: Hetero, copy: Path) -> None:
    (copy / "limits.toml").write_text(
        '[[limit]]\nmeasurement = "recall_at_1_lost"\nat_most = 0.1\nmin_n = 100000\n'
    )
    assert check(run, copy, "--limits", copy / "limits.toml").code == 3


def test_a_check_is_held_to_the_run_before(run: Hetero, copy: Path) -> None:
    limits = copy / "limits.toml"
    limits.write_text(
        '[[limit]]\nmeasurement = "recall_at_1_lost_to_baseline"\nby = "noninferiority"\n'
        'at_most = 0.9\n[[limit]]\nmeasurement = "cosine_worst"\nat_least = 0.9\n'
    )
    assert check(run, copy, "--limits", limits).code == 0
    # Into the same folder: the run before is read before it is replaced.
    ran = check(run, copy, "--limits", limits, "--baseline", copy / "check", "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    rows = [m for m in report["measurements"] if m["name"] == "recall_at_1_lost_to_baseline"]
    assert {(m["format"], m["value"], m["outcome"]) for m in rows} == {
        ("pytorch", 0.0, "pass"),
        ("onnx", 0.0, "pass"),
    }
    assert "query by query" in report["facts"]["baseline"]
    assert report["facts"]["role"] == "query"
    ran = check(run, copy, "--baseline", copy / "check", "--sequential")
    assert ran.code == 2
    assert "--sequential" in ran.complaint
    draw(copy / "other", classes=13)
    ran = check(run, copy, "--baseline", copy / "check", "-d", copy / "other")
    assert ran.code == 2
    assert "its data is" in ran.complaint


def test_a_limit_on_something_unmeasured_is_refused(run: Hetero, copy: Path) -> None:
    (copy / "limits.toml").write_text('[[limit]]\nmeasurement = "taste"\nat_least = 1\n')
    ran = check(run, copy, "--limits", copy / "limits.toml")
    assert ran.code == 2
    assert "'taste'" in ran.complaint


def test_bench_measures_latency_alone(run: Hetero, copy: Path) -> None:
    ran = run("bench", copy / "query", "--length", "quick", "-o", copy / "bench", "-q", "--json")
    report = json.loads(ran.out)
    assert ran.code == 0, "without limits a measurement is not a gate"
    assert {m["name"] for m in report["measurements"]} >= {"latency_p50", "load_time", "throughput"}


def test_inspect_knows_a_bundle_a_model_file_vectors_and_a_report(run: Hetero, copy: Path) -> None:
    check(run, copy)
    space = json.loads(run("inspect", copy / "gallery", "--json").out)["space"]
    for path in (
        copy / "query",
        copy / "check",
        copy / "check" / "embeddings" / "gallery.safetensors",
    ):
        assert json.loads(run("inspect", path, "--json").out)["space"] == space
    model = json.loads(run("inspect", copy / "query" / "model.fp32.onnx", "--json").out)
    assert model["hetero.space_id"] == space


def test_embed_stamps_vectors_with_their_space(run: Hetero, copy: Path) -> None:
    out = copy / "vectors.safetensors"
    ran = run("embed", copy / "gallery", "--split", "test", "-o", out, "-q", "--json")
    vectors = hetero.Embeddings.load(out)
    assert json.loads(ran.out)["rows"] == len(vectors)
    assert vectors.space.same_as(hetero.Bundle.load(copy / "gallery").space)


def test_devices_and_doctor_answer(run: Hetero) -> None:
    assert "local" in json.loads(run("devices", "--json").out)["devices"]
    checks = json.loads(run("doctor", "--json").out)["checks"]
    assert {"hetero", "memory", "disk", *(f"extra {e}" for e in EXTRAS)} <= {
        c["check"] for c in checks
    }


# -- bad input: one clear line, the right exit code, earlier results intact -----------------------


def test_a_missing_folder_of_pictures_is_named(run: Hetero, tmp_path: Path) -> None:
    ran = run("train", "gallery", "-d", tmp_path / "nowhere", "-o", tmp_path / "out", "-q")
    assert ran.code == 2
    assert "nowhere" in ran.complaint


def test_an_empty_folder_is_refused(run: Hetero, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = run("train", "gallery", "-d", tmp_path / "empty", "-o", tmp_path / "out", "-q")
    assert ran.code == 2
    assert "empty" in ran.complaint


def test_one_class_cannot_be_trained_on(run: Hetero, tmp_path: Path) -> None:
    ran = run(
        "train", "gallery", "-d", draw(tmp_path / "one", classes=1), "-o", tmp_path / "out", "-q"
    )
    assert ran.code == 2
    assert "class" in ran.complaint


def test_one_picture_per_class_cannot_be_evaluated(run: Hetero, tmp_path: Path) -> None:
    ran = run(
        "train", "gallery", "-d", draw(tmp_path / "single", each=1), "-o", tmp_path / "out", *TRAIN
    )
    assert ran.code == 2
    assert "class" in ran.complaint


def test_a_corrupt_picture_is_skipped_with_a_count(run: Hetero, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures")
    broken = pictures / "class00" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (pictures / "class01" / "notes.txt").write_text("not a picture")
    (pictures / "class02" / "1.png").write_bytes(b"")
    ran = run(
        "train", "gallery", "-d", pictures, "--backbone", "resnet:width=4", "--dim", 16, *TRAIN,
        "-o", tmp_path / "gallery", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    embedded = run("embed", tmp_path / "gallery", "-o", tmp_path / "v.safetensors", "-q", "--json")
    found = json.loads(embedded.out)
    assert found["rows"] == 14 * 8 - 2
    assert found["skipped"] >= 2


def test_a_bundle_of_another_space_is_refused(run: Hetero, copy: Path) -> None:
    ran = run("check", copy / "query", "--gallery", copy / "control", "-o", copy / "check", "-q")
    assert ran.code == 2
    assert "space" in ran.complaint
    assert not (copy / "check").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "probe.safetensors", "model.fp32.onnx"])
def test_one_flipped_byte_is_found(run: Hetero, copy: Path, name: str) -> None:
    path = copy / "query" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    ran = check(run, copy)
    assert ran.code == 2
    assert name in ran.complaint
    assert "altered" in ran.complaint


def test_a_truncated_model_file_is_one_line(run: Hetero, copy: Path) -> None:
    path = copy / "query" / "model.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-200])
    assert "model.fp32.onnx" in check(run, copy).complaint
    ran = run("inspect", path)
    assert ran.code == 2
    assert "model.fp32.onnx" in ran.complaint


def test_a_truncated_file_with_a_matching_hash_fails_on_the_device_as_one_line(
    run: Hetero, copy: Path
) -> None:
    from hetero.bundle import Bundle, digest

    bundle = Bundle.load(copy / "query")
    (item,) = bundle.exported()
    path = bundle.path(item)
    path.write_bytes(path.read_bytes()[:-200])
    sha, size = digest(path)
    bundle.with_artifact(item.model_copy(update={"sha256": sha, "size_bytes": size}))
    ran = check(run, copy)
    assert ran.code == 2
    assert "model" in ran.complaint


def test_an_unknown_backbone_lists_those_there_are(run: Hetero, copy: Path) -> None:
    ran = run(
        "train", "gallery", "-d", copy / "pictures", "--backbone", "vgg", "-o", copy / "x", "-q"
    )
    assert ran.code == 2
    assert "resnet" in ran.complaint


def test_test_classes_that_were_trained_on_are_refused(
    run: Hetero, copy: Path, tmp_path: Path
) -> None:
    rows = ["path,label,split"]
    for number in range(14):
        split = ("test", "train")[number >= 7] if number else "val"
        rows += [
            f"{copy / 'pictures'}/class{number:02d}/{at}.png,class{number:02d},{split}"
            for at in range(8)
        ]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(rows) + "\n")
    ran = check(run, copy, "-d", listed)
    assert ran.code == 2
    assert "trained on" in ran.complaint


def test_a_full_disk_is_one_line_and_leaves_earlier_results(
    run: Hetero, copy: Path, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", small], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    try:
        (small / "earlier").write_text("results")
        ran = run(
            "check", copy / "query", "--gallery", copy / "gallery", "--length", "quick",
            "-o", small / "check", "-q",
        )  # fmt: skip
        assert ran.code == 4
        assert "full" in ran.complaint
        assert (small / "earlier").read_text() == "results"
        assert hetero.Bundle.load(copy / "query").exported()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_folder_without_write_permission_is_one_line(
    run: Hetero, copy: Path, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        # Root may write anywhere but to a read-only mount.
        shut = tmp_path / "shut"
        shut.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", shut], capture_output=True
        )
        if mounted.returncode:
            pytest.skip(f"cannot mount read-only here: {mounted.stderr.decode().strip()}")
    else:
        shut = tmp_path / "shut"
        shut.mkdir(mode=0o500)
    try:
        ran = run("embed", copy / "gallery", "-o", shut / "v.safetensors", "-q")
        assert ran.code == 2
        assert "permission" in ran.complaint
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", shut], check=True)


def test_a_file_where_a_folder_has_to_be_is_one_line(run: Hetero, copy: Path) -> None:
    (copy / "check").write_text("a file")
    ran = check(run, copy)
    assert ran.code == 2
    assert "check" in ran.complaint
    assert (copy / "check").read_text() == "a file"


@pytest.mark.parametrize(
    "words",
    [
        ("demo", "--nonsense"),
        ("check",),
        ("train", "query", "nowhere"),
        ("inspect", "nowhere"),
        ("report", "nowhere"),
        ("export", "nowhere", "-f", "vhs"),
    ],
    ids=" ".join,
)
def test_wrong_use_exits_2_with_one_line(run: Hetero, words: tuple[str, ...]) -> None:
    ran = run(*words)
    assert ran.code == 2
    assert ran.complaint


def test_an_unknown_format_lists_those_there_are(run: Hetero, copy: Path) -> None:
    ran = run("export", copy / "query", "-f", "vhs", "-p", "fp32", "-q")
    assert ran.code == 2
    assert "onnx" in ran.complaint


def test_a_wrong_setting_of_a_method_lists_those_there_are(run: Hetero, copy: Path) -> None:
    ran = run("train", "query", copy / "gallery", "--set", "taste=3", "-o", copy / "x", *TRAIN)
    assert ran.code == 2
    assert "weight" in ran.complaint


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "onnx", "onnxruntime", "pydantic", "scipy", "matplotlib", "PIL")
    code = (
        "import sys; sys.argv=['hetero','--help']\n"
        "from hetero import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout[-500:] + done.stderr


def test_a_sequential_check_counts_what_it_asked_of_the_device(
    run: Hetero, copy: Path, tmp_path: Path
) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text(
        '[[limit]]\nmeasurement = "recall_at_1_lost"\nby = "noninferiority"\nat_most = 0.9\n'
    )
    ran = check(run, copy, "--sequential", "--limits", limits, "-f", "onnx", "-p", "fp32", "--json")
    assert ran.code in (0, 3), ran.complaint
    found = {m["name"]: m for m in json.loads(ran.out)["measurements"]}
    assert 0 < found["device_inferences"]["value"] <= found["device_inferences"]["n"]


# -- other ways into a space ----------------------------------------------------------------------


def test_one_training_gives_a_bundle_for_each_width(run: Hetero, copy: Path) -> None:
    ran = run(
        "train", "query", copy / "gallery", "--widths", "0.5,0.25", "--method", "regression",
        "--views", 1, "--dim", 8, *TRAIN, "-o", copy / "widths", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.complaint
    narrow, wide = json.loads(ran.out)["bundles"]
    assert [Path(b["bundle"]).name for b in (narrow, wide)] == ["width-0.25", "width-0.5"]
    assert narrow["macs"] < wide["macs"]
    gallery = json.loads(run("inspect", copy / "gallery", "--json").out)
    assert {narrow["space"], wide["space"]} == {gallery["space"]}


def test_a_ready_model_and_pictures_without_labels_are_enough(run: Hetero, copy: Path) -> None:
    bare = f"unlabelled:{copy / 'pictures'}"
    ran = run(
        "adopt", "resnet:width=4", "-d", bare, "--size", 32, "--dim", 8, "-o", copy / "adopted",
        "-q", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.complaint
    space = json.loads(ran.out)["space"]
    ran = run(
        "train", "query", copy / "adopted", "-d", bare, "--backbone", "mobilenet:width=0.25",
        "--views", 1, "--mix", 0.5, "--epochs", 1, "--batch", 16, "--keep-going",
        "-o", copy / "own", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.complaint
    assert json.loads(ran.out)["space"] == space
    # The choice of the method is said aloud, with its reason.
    assert "method regression: 101 pictures are too few" in ran.err
    ran = run("train", "query", copy / "adopted", "-d", bare, "--method", "bct", "-q")
    assert ran.code == 2
    assert "method bct needs labels" in ran.complaint
    ran = run("train", "gallery", "-d", bare, "-o", copy / "none", "-q")
    assert ran.code == 2
    assert "no labels" in ran.complaint


def test_two_trained_models_are_aligned(run: Hetero, copy: Path) -> None:
    ran = run(
        "align", copy / "control", copy / "gallery", "-d", copy / "pictures",
        "-o", copy / "aligned", "-q", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.complaint
    gallery = json.loads(run("inspect", copy / "gallery", "--json").out)
    aligned = json.loads(run("inspect", copy / "aligned", "--json").out)
    assert aligned["space"] == gallery["space"]
