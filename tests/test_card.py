"""The model card: what it says stands in manifest and report, what it tells one to do works."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_report import DEVICE, LIMITS, failing, unjudged
from test_readme import blocks, run

from hetero import cli
from hetero._files import sha256
from hetero.bundle import Artifact, Bundle, Model, Role
from hetero.cells import Cell
from hetero.errors import ConfigError
from hetero.preprocess import Preprocess
from hetero.render import card
from hetero.report import Report
from hetero.space import Space

SIZE, DIM = 8, 5
PREPROCESS = Preprocess(SIZE)
GALLERY = Space("gallery", "0123456789abcdef" * 4, DIM)


def a_bundle(folder: Path, takes: str = "", role: Role = "query") -> Bundle:
    """A bundle whose model is one matrix; with an ONNX file of it where `takes` names an input."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(DIM, 3 * SIZE * SIZE)).astype(np.float32)
    pixels = rng.integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)
    rows = PREPROCESS.tensor(pixels).reshape(len(pixels), -1).astype(np.float64) @ matrix.T
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    ids = "\n".join(f"p{i}" for i in range(len(pixels))).encode()
    made = Bundle.create(
        folder,
        role=role,
        space=GALLERY,
        model=Model(backbone="toy:matrix", dim=DIM, parameters=960, macs=960),
        preprocess=PREPROCESS,
        recipe={"method": "by | hand", "train.epochs": 3, "train.seed": 0},
        parent="f" * 64 if role == "query" else "",
        data={"source": "toy", "classes": 4},
        made_with={"hetero": "0", "numpy": "2"},
        tensors={
            "weights": {"matrix": matrix},
            "probe": {"ids": np.frombuffer(ids, np.uint8), "pixels": pixels, "vectors": vectors},
        },
    )
    if takes:
        path = write_onnx(folder / "model.fp32.onnx", matrix, takes)
        made = made.with_artifact(
            Artifact.model_validate(
                {
                    "path": path.name, "kind": "onnx", "precision": "fp32", "input": takes,
                    "sha256": sha256(path), "size_bytes": path.stat().st_size,
                }
            )
        )  # fmt: skip
    return made


def write_onnx(path: Path, matrix: np.ndarray, takes: str) -> Path:
    """Flatten and multiply, after (x / 255 - mean) / std where the file takes bytes."""
    pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    from onnx import TensorProto, helper, numpy_helper

    from hetero.export import _seal

    inside = takes == "uint8_nhwc"
    shape = [1, SIZE, SIZE, 3] if inside else [1, 3, SIZE, SIZE]
    kind = TensorProto.UINT8 if inside else TensorProto.FLOAT
    constants = {"w": matrix, "scale": np.float32([1 / (255 * 0.25)]), "less": np.float32([2])}
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["b", "scale"], ["c"]),
        helper.make_node("Sub", ["c", "less"], ["d"]),
    ] * inside + [
        helper.make_node("Flatten", ["d" if inside else "x"], ["e"]),
        helper.make_node("Gemm", ["e", "w"], ["embedding"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, DIM])],
        [numpy_helper.from_array(v, k) for k, v in constants.items() if inside or k == "w"],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(made, {_seal.KEY: _seal.BLANK})
    path.write_bytes(_seal.seal(made.SerializeToString(deterministic=True)))
    return path


def a_report(bundle: Bundle, report: Report | None = None, **facts: str) -> Report:
    """A full report that says that it is about the bundle."""
    made = report or unjudged().judged_by(LIMITS)
    own = {
        "query model": f"toy:matrix, weights {bundle.digest[:12]}",
        "gallery model": "resnet, weights ffffffffffff",
        "data": "toy, split checksum 0123",
        "queries": "1532",
        "test classes": "210",
    }
    own |= {
        f"{x.kind} {x.precision} on {DEVICE}": f"SHA-256 {x.sha256[:12]}, runtime onnxruntime"
        for x in bundle.exported()
    }
    return replace(made, facts={**made.facts, **own, **facts})


def front(text: str) -> Mapping[str, object]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert head
    found: Mapping[str, object] = yaml.safe_load(head[1])
    return found


# -- what it says ---------------------------------------------------------------------------------


def test_the_metadata_is_what_the_hub_reads(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    bundle = a_bundle(tmp_path)
    read = hub.ModelCard(card.render(bundle, a_report(bundle), "Toys: «small»", "apache-2.0")).data
    assert (read.library_name, read.license) == ("hetero", "apache-2.0")
    assert read.pipeline_tag == "image-feature-extraction"
    assert read.model_name == "Toys: «small»"
    scores = {x.metric_name: x.metric_value for x in read.eval_results}
    label = "Recall@1, query model in the gallery's index"
    assert scores[f"{label}, TFLite int8 on {DEVICE}"] == pytest.approx(0.708)
    assert scores[f"{label}, PyTorch fp32"] == pytest.approx(0.712)
    assert {x.metric_type for x in read.eval_results} == {"recall_at_1", "map"}
    assert {(x.dataset_name, x.task_type) for x in read.eval_results} == {
        ("toy", "image-feature-extraction")
    }


def test_the_metadata_is_yaml_whatever_the_name(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path)
    for name in ('a "b": # c', "---\nx: y", "é\u2028\x85\U0001f600", "\x00\x7f"):
        found = front(card.render(bundle, a_report(bundle), name, "other"))
        (index,) = found["model-index"]  # type: ignore[misc]
        assert index["name"].split()[:1] == re.sub(r"[\x00\x7f]", "\ufffd", name).split()[:1]


def test_a_licence_is_only_ever_the_user_s(tmp_path: Path) -> None:
    text = card.render(a_bundle(tmp_path), None, "toys")
    assert "license" not in front(text)
    assert "No licence was given" in text


def test_a_card_without_a_report_claims_nothing(tmp_path: Path) -> None:
    text = card.render(a_bundle(tmp_path), None, "toys")
    assert "model-index" not in front(text)
    assert "Not evaluated" in text
    assert "Nothing was measured" in text


def test_every_file_stands_in_it_with_its_size_and_hash(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path)
    text = card.render(bundle, None, "toys")
    assert len(bundle.manifest.files) == 2
    for item in bundle.manifest.files:
        path = bundle.path(item)
        assert f"`{path.name}`" in text
        assert sha256(path) in text
        assert f"| {path.stat().st_size:,} |" in text
    assert f"`{GALLERY.id}`" in text
    assert f"resized to {SIZE}x{SIZE}" in text
    assert "| method | by \\| hand |" in text
    assert "f" * 64 in text


def test_scores_carry_their_intervals_and_the_rows_beside_them(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path)
    text = card.render(bundle, a_report(bundle), "toys")
    row = next(x for x in text.splitlines() if x.startswith("| PyTorch fp32 "))
    assert "71.2 % (69.2 to 73.2)" in row
    assert "| Recall@1, negative control | 0.6 % (0.2 to 1.0) |" in text
    assert "1532 queries of 210 classes" in text


def test_what_was_not_run_or_not_passed_is_a_limitation(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path)
    report = a_report(bundle, failing())
    cells = (Cell(DEVICE, "tflite", "int8", "emulated"),)
    text = card.render(bundle, replace(report, cells=cells), "toys")
    limits = text.split("## Limitations")[1]
    assert "Not executed: Core ML fp16" in limits
    assert "Recall@1 lost to PyTorch, TFLite int8" in limits
    assert ": fail." in limits
    assert "execution is emulated" in limits
    assert f"Run on {DEVICE} and nowhere else" in limits
    passed = card.render(bundle, a_report(bundle), "toys").split("## Limitations")[1]
    assert ": fail." not in passed


def test_a_model_file_that_was_not_checked_is_named(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path, "uint8_nhwc")
    whole = a_report(bundle)
    assert "Not part of the check" not in card.render(bundle, whole, "toys")
    rows = tuple(m for m in whole.measurements if m.format != "onnx")
    text = card.render(bundle, replace(whole, measurements=rows), "toys")
    assert "Not part of the check: model.fp32.onnx." in text


def test_a_report_of_another_bundle_or_file_is_refused(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path, "uint8_nhwc")
    with pytest.raises(ConfigError, match="the report is about resnet, weights 1"):
        card.render(bundle, a_report(bundle, **{"query model": "resnet, weights 1"}), "toys")
    with pytest.raises(ConfigError, match="no query model"):
        card.render(bundle, unjudged(), "toys")
    other = {f"onnx fp32 on {DEVICE}": "SHA-256 000000000000, runtime x"}
    with pytest.raises(ConfigError, match=r"another model\.fp32\.onnx"):
        card.render(bundle, a_report(bundle, **other), "toys")


def test_a_gallery_model_has_its_own_scores_and_a_classifier_its_own_task(tmp_path: Path) -> None:
    gallery = a_bundle(tmp_path / "gallery", role="gallery")
    told = a_report(gallery, **{"gallery model": f"toy:matrix, weights {gallery.digest[:12]}"})
    (index,) = front(card.render(gallery, told, "toys"))["model-index"]  # type: ignore[misc]
    values = [m["value"] for m in index["results"][0]["metrics"]]
    assert values[0] == pytest.approx(0.801)
    classifier = a_bundle(tmp_path / "classifier", role="classifier")
    found = front(card.render(classifier, None, "toys"))
    assert found["pipeline_tag"] == "image-classification"


# -- what it tells one to do ----------------------------------------------------------------------


@pytest.mark.parametrize("takes", ["uint8_nhwc", "float32_nchw"])
def test_the_blocks_of_a_card_run_in_the_bundle_s_folder(takes: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    bundle = a_bundle(tmp_path / "bundle", takes)
    found = blocks(card.render(bundle, None, "toys"))
    assert [kind for _, kind, _ in found] == ["python", "bash", "python"]
    # The snippet has tests of its own: once is enough.
    if takes == "uint8_nhwc":
        from PIL import Image

        noise = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(bundle.root / "picture.jpg")
    else:
        found = found[:1]
    said = []
    for _, kind, code in found:
        more = "\nprint(len(vector))" if "vector = embed" in code else ""
        done = run(kind, code + more, bundle.root)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    told = re.fullmatch(r"worst cosine to PyTorch: (\d\.\d+)\n", said[0])
    assert told
    assert float(told[1]) > 0.99999
    if takes == "uint8_nhwc":
        assert said[-1] == f"{DIM}\n"


def test_the_command_writes_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = a_bundle(tmp_path / "toys")
    a_report(bundle).save(tmp_path / "check" / "report.json")

    def command(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["hetero", "card", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return int(done.value.code or 0)

    target = bundle.root / "README.md"
    words = (bundle.root, "--report", tmp_path / "check", "--license", "mit", "-o", target)
    assert command(*words, "--json") == 0
    assert json.loads(capfd.readouterr().out) == {"card": str(target)}
    text = target.read_text()
    assert "# toys\n" in text
    assert front(text)["license"] == "mit"
    Bundle.load(bundle.root)  # a card beside the files leaves the bundle whole
    shutil.rmtree(tmp_path / "check")
    assert command(*words) == 2
    assert "report.json" in capfd.readouterr().err
