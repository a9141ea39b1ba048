"""int8 that keeps to limits of what search may lose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", exc_type=ImportError)

import exporting  # noqa: E402

from hetero.errors import ConfigError, ExportError  # noqa: E402
from hetero.export import Judging, export  # noqa: E402
from hetero.export._job import ConvertJob  # noqa: E402
from hetero.export._mixed import Judge, Loss, allowed, fewest_in_float, short  # noqa: E402
from hetero.stages.exporting import covering  # noqa: E402
from hetero.stages.exporting import judging as judging_of  # noqa: E402

NAMES = ("a", "b", "c", "d", "e", "f")
#: What each layer costs in int8, in flips; the limit is 1 %.
COST = {"a": 0.001, "b": 0.008, "c": 0.0, "d": 0.004, "e": 0.0, "f": 0.002}


class Fake(Judge):
    """Models that are what they cost, and a judge that reads it off."""

    def __init__(self, cost: dict[str, float] = COST, limit: float = 0.01) -> None:
        self.cost, self.limit, self.made = cost, limit, []

    def make(self, kept: tuple[int, ...]) -> tuple[int, ...]:
        self.made.append(kept)
        return kept

    def load(self, kept: tuple[int, ...]) -> object:
        class Opened:
            def __enter__(self) -> tuple[int, ...]:
                return kept

            def __exit__(self, *ignored: object) -> None:
                return None

        return Opened()

    def loss(self, kept: tuple[int, ...]) -> Loss:
        lost = sum(self.cost[n] for i, n in enumerate(NAMES) if i not in kept)
        return Loss(lost / 2, lost, lost)

    def within(self, loss: Loss | None) -> bool:
        return loss is not None and loss.flips <= self.limit


def chosen(fake: Fake, tmp_path: Path):
    return fewest_in_float(fake.make, NAMES, fake.load, fake, tmp_path / "table.json")


def test_a_file_within_the_limits_is_left_all_int8_and_no_layer_is_tried(tmp_path: Path) -> None:
    fake = Fake(limit=0.02)
    kept, facts = chosen(fake, tmp_path)
    assert kept == ()
    assert fake.made == [()]
    assert facts["layers_in_float"] == 0
    assert not (tmp_path / "table.json").exists()


def test_the_most_sensitive_layers_go_to_float_until_the_limit_is_kept_and_no_more(
    tmp_path: Path,
) -> None:
    kept, facts = chosen(Fake(limit=0.005), tmp_path)  # 0.015 in all; b and d cost 0.012
    assert [NAMES[i] for i in kept] == ["b", "d"]
    assert facts["float_layers"] == "b, d"
    assert facts["judged_negative_flips"] == pytest.approx(0.003)
    assert facts["all_int8_negative_flips"] == pytest.approx(0.015)


def test_the_table_has_what_each_layer_costs_alone(tmp_path: Path) -> None:
    chosen(Fake(limit=0.005), tmp_path)
    table = json.loads((tmp_path / "table.json").read_text())
    assert {r["layer"]: r["flips"] for r in table["alone"]} == pytest.approx(COST)
    assert [r["layer"] for r in table["alone"] if r["kept_float"]] == ["b", "d"]
    assert table["whole"]["flips"] == pytest.approx(sum(COST.values()))


def test_where_half_of_the_layers_in_float_do_not_suffice_int8_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="3 of 6 layers in float; train with --qat"):
        chosen(Fake(dict.fromkeys(NAMES, 0.02)), tmp_path)


def test_a_model_without_finite_vectors_counts_as_the_worst(tmp_path: Path) -> None:
    class Broken(Fake):
        def loss(self, kept: tuple[int, ...]) -> Loss | None:  # type: ignore[override]
            return super().loss(kept) if 2 in kept else None

    kept, facts = chosen(Broken(limit=0.02), tmp_path)
    assert [NAMES[i] for i in kept] == ["c"]
    assert "all_int8_negative_flips" not in facts


@pytest.mark.parametrize(
    ("n", "limit", "most"),
    # By hand where so few are likely: 0.99**298 = 0.0501, 0.99**299 = 0.0496.
    [(1200, 0.01, 6), (2000, 0.01, 12), (298, 0.01, 2), (299, 0.01, 0), (50, 0.03, 1), (9, 1.0, 9)],
)
def test_so_many_flips_are_allowed_that_the_limit_is_kept_with_confidence(n, limit, most) -> None:
    from scipy.stats import binom

    assert allowed(n, limit) == most
    if n > 298 and limit < 1:
        assert binom.cdf(most, n, limit) <= 0.05 < binom.cdf(most + 1, n, limit)


def test_a_layers_short_name_says_where_it_is() -> None:
    assert short("a.b.Net/c.d.Sequential_inner/e.f.Conv_1;;g.Norm_2;") == (
        "Net/Sequential_inner/Conv_1"
    )
    assert short("node_add_3") == "node_add_3"


# -- the judge ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judging() -> Judging:
    bundle, images = exporting.bundle(), exporting.data.load("emoji")
    some = images.rows("val")[:60]
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(40, exporting.DIM)).astype(np.float32)
    labels = tuple(f"class {i % 10}" for i in range(60))
    return Judging(
        images.pixels(some, bundle.preprocess),
        labels,
        tuple(f"q{i}" for i in range(60)),
        gallery,
        tuple(f"class {i % 10}" for i in range(40)),
        tuple(f"g{i}" for i in range(40)),
        0.02,
        0.03,
    )


@pytest.fixture(scope="module")
def judge(judging: Judging, tmp_path_factory: pytest.TempPathFactory):
    from hetero.export import _quantize

    path = tmp_path_factory.mktemp("judge") / "judge.npz"
    judging.save(path)
    job = ConvertJob(
        bundle=exporting.bundle().root,
        output=path.with_name("model.onnx"),
        format="onnx",
        precision="int8",
        bake=True,
        batch=0,
        size_px=exporting.SIZE,
        dim=exporting.DIM,
        metadata={},
        judge=path,
        most_lost=0.02,
        most_flips=0.03,
    )
    net = _quantize.net_of(job)
    with torch.no_grad():
        rows = net(torch.from_numpy(judging.pixels)).numpy()
    return Judge(job, net), rows


class Gives:
    """A Runner that gives these rows."""

    runtime = "none"

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __enter__(self) -> Gives:
        return self

    def __exit__(self, *ignored: object) -> None:
        return None

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        return self.rows


def right_by_loop(judging: Judging, rows: np.ndarray) -> list[bool]:
    gallery = judging.gallery / np.linalg.norm(judging.gallery, axis=1, keepdims=True)
    found = []
    for row, label in zip(rows, judging.labels, strict=True):
        best = max(range(len(gallery)), key=lambda i: float(row @ gallery[i]))
        found.append(judging.gallery_labels[best] == label)
    return found


def test_the_judge_counts_lost_answers_as_a_loop_does(judging: Judging, judge) -> None:
    its, rows = judge
    moved = rows + 0.15 * np.random.default_rng(1).normal(size=rows.shape).astype(np.float32)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    before, after = right_by_loop(judging, rows), right_by_loop(judging, moved)
    loss = its.loss(Gives(moved))
    assert loss.recall == pytest.approx((sum(before) - sum(after)) / 60)
    negative = sum(b and not a for b, a in zip(before, after, strict=True))
    assert negative > 0
    assert loss.flips == pytest.approx(negative / 60)
    cosine = [float(a @ b) for a, b in zip(rows, moved, strict=True)]
    assert loss.turned == pytest.approx(1 - np.mean(cosine), abs=1e-6)


def test_the_same_vectors_lose_nothing_and_vectors_that_are_not_finite_have_no_loss(judge) -> None:
    its, rows = judge
    same = its.loss(Gives(rows))
    assert (same.recall, same.flips) == (0, 0)
    assert its.within(same)
    assert its.loss(Gives(np.full_like(rows, np.nan))) is None
    assert not its.within(None)


def test_both_limits_have_to_be_kept(judge) -> None:
    its, rows = judge
    one = 1 / len(rows)  # of so few pictures a limit of 3 % allows one to flip
    assert its.within(Loss(0.02, one, 0.5))
    assert not its.within(Loss(0.021, 0.0, 0.0))
    assert not its.within(Loss(0.0, 2 * one, 0.0))


def test_limits_that_are_no_share_are_refused(judging: Judging) -> None:
    with pytest.raises(ConfigError, match="0 to 1"):
        replace(judging, most_flips=1.5)


def close_calls(judging: Judging, rows: np.ndarray) -> Judging:
    """For each query the right answer and a wrong one that is worse by little, or by very little.

    Between answers that lie far apart nothing flips; here about as much does as vectors turn.
    """
    rng = np.random.default_rng(3)
    aside = rng.normal(size=rows.shape)
    aside -= rows * (aside * rows).sum(1, keepdims=True)
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    angle = np.geomspace(1e-3, 0.2, len(rows))[rng.permutation(len(rows)), None]
    wrong = rows * np.cos(angle) + aside * np.sin(angle)
    names = [f"own {i}" for i in range(len(rows))]
    return replace(
        judging,
        labels=tuple(names),
        gallery=np.concatenate([rows, wrong]).astype(np.float32),
        gallery_labels=(*names, *("wrong" for _ in names)),
        gallery_groups=tuple(f"g{i}" for i in range(2 * len(rows))),
        most_lost=1.0,
        most_flips=1.0,
    )


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_judged_file_keeps_to_its_limits_with_some_layers_in_float(
    format: str, judging: Judging, judge, tmp_path: Path
) -> None:
    pytest.importorskip({"onnx": "onnxscript", "tflite": "litert_torch"}[format])
    given = {"calibration": exporting.calibration()}
    free = close_calls(judging, judge[1])
    bundle = exporting.copy_of_bundle(tmp_path / "free")
    whole = export(bundle, format, "int8", **given, judging=free).artifact(format, "int8").facts
    assert whole["layers_in_float"] == 0
    assert whole["judged_negative_flips"] > 0.05
    # The limit that is kept with confidence by four fifths of these flips.
    n = len(free.pixels)
    few = int(0.8 * float(whole["judged_negative_flips"]) * n)
    limit = next(x for x in np.arange(0.01, 1, 0.005) if allowed(n, x) >= few)
    bundle = exporting.copy_of_bundle(tmp_path / "kept")
    strict = replace(free, most_flips=float(limit))
    facts = export(bundle, format, "int8", **given, judging=strict).artifact(format, "int8").facts
    assert facts["all_int8_negative_flips"] == pytest.approx(whole["judged_negative_flips"])
    assert facts["judged_negative_flips"] <= few / n + 1e-9 < limit
    assert len(str(facts["float_layers"]).split(", ")) == facts["layers_in_float"] >= 1
    table = json.loads((bundle.root / "logs" / f"sensitivity-{format}.json").read_text())
    assert len(table["alone"]) == facts["layers"]


# -- what it is given ---------------------------------------------------------------------------


def test_calibration_covers_a_kind_of_picture_that_is_rare() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=(1990, 8)) * 0.01 + np.eye(8)[0]
    rare = rng.normal(size=(10, 8)) * 0.01 + np.eye(8)[5]
    vectors = np.concatenate([common, rare]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = covering(vectors, 20)
    assert (found >= 1990).any()
    assert 2 <= len(found) <= 20
    np.testing.assert_array_equal(found, covering(vectors, 20))


def test_the_judging_pictures_are_validation_queries_and_the_gallery_models_vectors(
    tmp_path: Path,
) -> None:
    from hetero.evaluate import task
    from hetero.models import TorchEmbedder
    from hetero.progress import Reporter

    bundle, images = exporting.bundle(), exporting.data.load("emoji")
    made = judging_of(bundle, bundle, images, Reporter(quiet=True), most_lost=0.1, most_flips=0.2)
    job = task(images, "val")
    assert set(made.labels) <= set(images.classes("val"))
    assert made.gallery_labels == job.truth.gallery_labels
    assert (made.most_lost, made.most_flips) == (0.1, 0.2)
    row = images.ids.index(job.gallery_ids[7])
    pixels = images.pixels([row], bundle.preprocess)
    np.testing.assert_allclose(
        made.gallery[7], TorchEmbedder(bundle).embed(["x"], pixels).vectors[0], atol=1e-5
    )
