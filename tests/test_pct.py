"""Classifiers held to the one before: losses against slow loops, rates against hand and SciPy."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import binomtest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from toys import PREPROCESS, Tripwire, quiet, toy_images, weights  # noqa: E402

from hetero import _plugins, cli, models  # noqa: E402
from hetero.augment import View, identity  # noqa: E402
from hetero.bundle import Bundle  # noqa: E402
from hetero.data import Images, by_picture, load  # noqa: E402
from hetero.errors import (  # noqa: E402
    BundleError,
    ConfigError,
    DataError,
    Interrupted,
    MissingExtraError,
    SpaceMismatchError,
)
from hetero.evaluate import task  # noqa: E402
from hetero.fit import Settings  # noqa: E402
from hetero.pct import methods  # noqa: E402
from hetero.pct import train as training  # noqa: E402
from hetero.pct.metrics import compare, share  # noqa: E402
from hetero.pct.train import ClassifierRecipe, train_classifier, train_ensemble  # noqa: E402
from hetero.preprocess import Preprocess  # noqa: E402
from hetero.stages import flipping  # noqa: E402
from hetero.verdict import decide  # noqa: E402

NAMES = _plugins.names("hetero.pct.methods")
HELD = [name for name in NAMES if name != "none"]
BATCH, CLASSES, FEATURES = 7, 5, 6

#: The new model's number of each class that the old one knows.
COLUMNS = (3, 0, 4)


def a_step(seed: int = 0, known: tuple[int, ...] = COLUMNS, old_features: int = 4) -> methods.Step:
    rng = np.random.default_rng(seed)

    def numbers(*shape: int) -> Any:
        return torch.from_numpy(rng.normal(0, 2, shape).astype(np.float32))

    return methods.Step(
        logits=numbers(BATCH, CLASSES),
        features=numbers(BATCH, FEATURES),
        # Classes 1 and 2 are new ones, of which the old model knows nothing.
        labels=torch.tensor([0, 3, 4, 1, 2, 3, 0]),
        old=numbers(BATCH, len(known)),
        columns=torch.tensor(known),
        head=methods.OldHead(numbers(len(known), old_features), numbers(len(known))),
    )


def in_numpy(step: methods.Step) -> tuple[Any, ...]:
    parts = (step.logits, step.labels, step.old, step.columns, step.features)
    return tuple(
        p.detach().numpy().astype(np.float64 if p.is_floating_point() else int) for p in parts
    )


def entropies(step: methods.Step) -> np.ndarray:
    logits, labels, *_ = in_numpy(step)
    return np.array([-log_softmax(row)[y] for row, y in zip(logits, labels, strict=True)])


def old_right(step: methods.Step) -> list[bool]:
    _, labels, old, columns, _ = in_numpy(step)
    return [columns[int(np.argmax(row))] == y for row, y in zip(old, labels, strict=True)]


# -- every method, a later one too -----------------------------------------------------------------


@pytest.mark.parametrize("name", HELD)
def test_a_method_names_its_paper_and_says_where_it_differs(name: str) -> None:
    text = _plugins.load("hetero.pct.methods", name).__doc__ or ""
    paper = text.partition("\nPaper: ")[2].partition("\nDiffers: ")[0]
    assert "arXiv:" in paper
    assert text.partition("\nDiffers: ")[2]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_frozen_and_has_a_default_for_each_setting(name: str) -> None:
    method = methods.make(name)
    assert isinstance(method, methods.Method)
    assert methods.make(name, methods.settings_of(method)) == method
    for field in fields(method):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(method, field.name, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("known", [COLUMNS, (0, 1, 2, 3, 4)], ids=["fewer classes", "all"])
def test_a_loss_is_a_finite_number_that_moves_the_new_model_alone(
    name: str, known: tuple[int, ...]
) -> None:
    step = a_step(known=known)
    step.logits.requires_grad_()
    step.features.requires_grad_()
    loss = methods.make(name).loss(step)
    assert loss.shape == ()
    loss.backward()
    assert torch.isfinite(step.logits.grad).all()
    assert step.logits.grad.abs().sum() > 0
    assert step.old is not None
    assert step.old.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_a_method_that_may_be_computed_in_parts_is_the_mean_of_its_parts(name: str) -> None:
    method: Any = methods.make(name)
    step = a_step()

    def part(rows: slice) -> methods.Step:
        named = ("logits", "features", "labels", "old")
        return replace(step, **{n: getattr(step, n)[rows] for n in named})

    whole = method.loss(part(slice(0, 6)))
    halves = [method.loss(part(rows)) for rows in (slice(0, 3), slice(3, 6))]
    same = torch.allclose(torch.stack(halves).mean(), whole, rtol=1e-5)
    assert same is not method.whole_batch


@pytest.mark.parametrize("name", HELD)
def test_without_weight_a_method_is_plain_training(name: str) -> None:
    step = a_step()
    plain = methods.make("none").loss(step)
    assert float(methods.make(name, {"weight": 0}).loss(step)) == pytest.approx(float(plain))
    assert float(methods.make(name, {"weight": 2}).loss(step)) > float(plain)


@pytest.mark.parametrize("name", HELD)
def test_a_negative_weight_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="weight has to be a number of at least 0"):
        methods.make(name, {"weight": "-1"})


@pytest.mark.parametrize("name", ["focal_kl", "focal_logit", "ldi"])
def test_a_model_that_answers_as_the_old_one_pays_nothing_for_it(name: str) -> None:
    step = a_step(known=(0, 1, 2, 3, 4))
    same = replace(step, logits=step.old)
    plain = methods.make("none").loss(same)
    assert float(methods.make(name).loss(same)) == pytest.approx(float(plain), rel=1e-6)


def test_an_unknown_method_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown method 'focal'; there are bct, focal_kl"):
        methods.make("focal")


# -- each formula against a slow loop --------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_naive_weighs_what_the_old_model_gets_right(seed: int) -> None:
    step = a_step(seed)
    each = [e * (1 + 2.5 * r) for e, r in zip(entropies(step), old_right(step), strict=True)]
    found = methods.make("naive", {"weight": 2.5}).loss(step)
    assert float(found) == pytest.approx(sum(each) / BATCH, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
def test_focal_kl_is_the_weighted_divergence_of_softened_answers(
    seed: int, temperature: float
) -> None:
    step = a_step(seed)
    logits, _, old, columns, _ = in_numpy(step)
    total = 0.0
    for row, theirs, right in zip(logits, old, old_right(step), strict=True):
        p, q = softmax(theirs / temperature), softmax(row[columns] / temperature)
        total += (0.5 + 3 * right) * temperature**2 * rel_entr(p, q).sum()
    method = methods.make(
        "focal_kl", {"weight": 0.7, "base": 0.5, "focus": 3, "temperature": temperature}
    )
    expected = entropies(step).mean() + 0.7 * total / BATCH
    assert float(method.loss(step)) == pytest.approx(expected, rel=1e-5)


def test_at_a_high_temperature_focal_kl_is_the_squared_distance_of_centred_logits() -> None:
    # Of T^2 KL(softmax(a/T) || softmax(b/T)), for T without end: the variance of a - b, halved.
    step = a_step()
    logits, _, old, columns, _ = in_numpy(step)
    half = ((logits[:, columns] - old).var(axis=1) / 2).mean()
    method = methods.make("focal_kl", {"focus": 0, "temperature": 1e4})
    assert float(method.loss(step)) == pytest.approx(entropies(step).mean() + half, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_focal_logit_is_the_weighted_squared_distance(seed: int) -> None:
    step = a_step(seed)
    logits, _, old, columns, _ = in_numpy(step)
    total = 0.0
    for row, theirs, right in zip(logits, old, old_right(step), strict=True):
        total += (1 + 5 * right) * np.square(row[columns] - theirs).sum() / 2
    expected = entropies(step).mean() + 0.3 * total / BATCH
    assert float(methods.make("focal_logit", {"weight": 0.3}).loss(step)) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("top", [0, 1, 2, 9])
@pytest.mark.parametrize(("margin", "power"), [(0.0, 2.0), (0.5, 2.0), (0.2, 1.0)])
def test_ldi_counts_differences_beyond_a_margin_in_the_references_highest_classes(
    top: int, margin: float, power: float
) -> None:
    step = a_step()
    logits, _, old, columns, _ = in_numpy(step)
    each = []
    for row, theirs in zip(logits, old, strict=True):
        order = sorted(range(len(theirs)), key=lambda i: -theirs[i])[: top or None]
        each += [max(abs(row[columns[i]] - theirs[i]) - margin, 0) ** power for i in order]
    method = methods.make("ldi", {"weight": 4, "margin": margin, "power": power, "top": top})
    expected = entropies(step).mean() + 4 * np.mean(each)
    assert float(method.loss(step)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("old_features", [4, FEATURES, 9], ids=["shorter", "equal", "longer"])
def test_bct_asks_the_old_head_about_the_new_features(old_features: int) -> None:
    step = a_step(old_features=old_features)
    _, labels, _, columns, features = in_numpy(step)
    weight, bias = (t.numpy().astype(float) for t in (step.head.weight, step.head.bias))
    each = []
    for row, y in zip(features, labels, strict=True):
        if y in columns:
            padded = np.zeros(old_features)
            padded[: min(old_features, FEATURES)] = row[:old_features]
            each.append(-log_softmax(weight @ padded + bias)[list(columns).index(y)])
    expected = entropies(step).mean() + 1.5 * np.mean(each)
    assert float(methods.make("bct", {"weight": 1.5}).loss(step)) == pytest.approx(
        expected, rel=1e-5
    )


# -- rates -----------------------------------------------------------------------------------------


def alone(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def test_rates_are_those_counted_by_hand() -> None:
    #      kept, kept, broken, mended, wrong twice
    old = np.array([1, 1, 1, 0, 0], bool)
    new = np.array([1, 1, 0, 1, 0], bool)
    found = compare(old, new, ["a", "a", "b", "b", "b"], alone(5))
    rates = found.overall
    assert (rates.er_old.value, rates.er_new.value) == pytest.approx((2 / 5, 2 / 5))
    assert (rates.nfr.value, rates.pfr.value) == pytest.approx((1 / 5, 1 / 5))
    # Independent errors would have broken 3/5 * 2/5 of them.
    assert rates.relative_nfr.value == pytest.approx((1 / 5) / (3 / 5 * 2 / 5))
    assert found.flipped.tolist() == [2]
    assert found.classes["a"].nfr.value == 0
    assert found.classes["b"].nfr.value == pytest.approx(1 / 3)
    assert found.classes["a"].relative_nfr is None
    assert found.evidence.estimate == pytest.approx(1 / 5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_what_errors_lose_is_what_flips_gain(pairs: list[tuple[bool, bool]]) -> None:
    old, new = np.array(pairs).T
    rates = compare(old, new, ["c"] * len(pairs), alone(len(pairs))).overall
    assert rates.er_old.value - rates.er_new.value == pytest.approx(
        rates.pfr.value - rates.nfr.value
    )


@pytest.mark.parametrize(("count", "n"), [(0, 50), (3, 200), (40, 1000), (50, 50)])
def test_without_groups_the_interval_is_clopper_and_pearsons(count: int, n: int) -> None:
    outcomes = np.arange(n) < count
    low, high = share(outcomes, alone(n)).ci
    exact = binomtest(count, n).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.06 / np.sqrt(n))


def test_pictures_that_belong_together_make_the_interval_wider() -> None:
    outcomes = np.arange(400) < 40
    together = [str(i // 10) for i in range(400)]
    low, high = share(outcomes, alone(400)).ci
    wide = share(outcomes, together).ci
    assert wide[0] < low < high < wide[1]


def test_relative_flips_of_independent_errors_are_one_and_the_interval_says_so() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(20):
        old, new = rng.random(2000) < 0.7, rng.random(2000) < 0.8
        found = compare(old, new, ["c"] * 2000, alone(2000)).overall.relative_nfr
        assert found.value == pytest.approx(1, abs=0.2)
        inside += found.ci[0] <= 1 <= found.ci[1]
    assert inside >= 16  # 19 expected of 20; fewer than 16 once in 400 times


@pytest.mark.parametrize(
    ("flips", "outcome"), [(0, "pass"), (3, "pass"), (10, "inconclusive"), (30, "fail")]
)
def test_the_gate_decides_as_the_exact_binomial_test(flips: int, outcome: str) -> None:
    n, margin = 1000, 0.01
    new = np.arange(n) >= flips
    found = decide(compare(np.ones(n, bool), new, ["c"] * n, alone(n)).evidence, margin, 0.05, 0.05)
    assert found.outcome == outcome
    passes = binomtest(flips, n, margin, alternative="less").pvalue < 0.05
    fails = binomtest(flips, n, margin, alternative="greater").pvalue < 0.05
    assert (passes, fails) == (outcome == "pass", outcome == "fail")


def test_the_worst_classes_come_first_and_small_ones_are_not_named() -> None:
    labels = ["many"] * 20 + ["few"] * 3 + ["none"] * 20 + ["some"] * 20
    old = np.ones(63, bool)
    new = old.copy()
    new[[0, 1, 20, 21, 22, 43]] = False
    assert [name for name, _ in compare(old, new, labels, alone(63)).worst()] == ["many", "some"]


def test_answers_that_do_not_pair_are_refused() -> None:
    with pytest.raises(DataError, match="2 old answers, 2 new ones, 1 labels"):
        compare(np.ones(2, bool), np.ones(2, bool), ["a"], ["1", "2"])


# -- closed sets -----------------------------------------------------------------------------------


def test_split_by_picture_every_class_is_trained_on_and_groups_stay_together() -> None:
    images = toy_images(4, 2, 2, per_class=40)
    grouped = replace(images, groups=tuple(i.rpartition("/")[0] + i[-1] for i in images.ids))
    for given_ in (images, grouped):
        closed = by_picture(given_)
        assert closed.closed
        assert closed.classes("train") == tuple(sorted(set(images.labels)))
        where: dict[tuple[str, str], set[str]] = {}
        for label, group, split in zip(closed.labels, closed.groups, closed.splits, strict=True):
            where.setdefault((label, group), set()).add(split)
        assert all(len(found) == 1 for found in where.values())
    assert [len(by_picture(images).rows(s)) / 320 for s in ("train", "val", "test")] == (
        pytest.approx([0.7, 0.1, 0.2], abs=0.06)
    )


def test_a_picture_keeps_its_split_when_others_are_added() -> None:
    few, many = (by_picture(toy_images(4, 2, 2, per_class=n)) for n in (20, 30))
    later = dict(zip(many.ids, many.splits, strict=True))
    moved = [i for i, s in zip(few.ids, few.splits, strict=True) if later[i] != s]
    assert not moved


def test_a_class_that_fell_outside_of_training_gives_a_picture_to_it() -> None:
    closed = by_picture(toy_images(8, 4, 4, per_class=1))
    assert set(closed.splits) == {"train"}


def test_search_is_not_measured_on_a_closed_set() -> None:
    with pytest.raises(DataError, match="search is measured on classes that training never saw"):
        task(by_picture(toy_images()), "test")


def test_a_closed_set_that_is_none_is_refused() -> None:
    images = by_picture(toy_images(per_class=20))
    unseen = tuple(
        "test" if x == "class00" else s for x, s in zip(images.labels, images.splits, strict=True)
    )
    with pytest.raises(DataError, match="class 'class00' has no training picture"):
        replace(images, splits=unseen)
    with pytest.raises(DataError, match="what belongs together has to be in one split"):
        replace(images, groups=("one",) * len(images))
    with pytest.raises(DataError, match="a classifier needs classes"):
        by_picture(replace(toy_images(), labelled=False))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    monkeypatch.setattr("platformdirs.user_cache_path", lambda app: tmp_path / "cache" / app)
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 6)):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for n in range(count):
                pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{n}.png")
    return root


def test_a_folder_with_train_and_test_keeps_its_split_and_holds_pictures_back(folder: Path) -> None:
    images = load(f"classes:{folder}")
    assert images.closed
    assert {images.ids[r].partition("/")[0] for r in images.rows("test")} == {"test"}
    assert len(images.rows("test")) == 12
    assert 0 < len(images.rows("val")) < 20
    assert images.classes("train") == images.classes("test") == ("cat", "dog")


def test_a_folder_of_class_folders_is_split_by_picture(folder: Path) -> None:
    images = load(f"classes:{folder / 'train'}")
    assert images.classes("train") == images.classes("test") == ("cat", "dog")
    assert images.splits == by_picture(images).splits


def test_the_open_set_source_points_to_the_closed_one(folder: Path) -> None:
    with pytest.raises(DataError, match="for a classifier of these classes, classes:"):
        load(f"folder:{folder}")


# -- training --------------------------------------------------------------------------------------

BACKBONE = "toys:small_backbone"
SHORT = Settings(epochs=6, batch=32, lr=1e-2, keep_going=True)


@pytest.fixture(scope="module")
def images() -> Images:
    return by_picture(toy_images(8, 2, 2, per_class=30))


def made(images: Images, root: Path, method: str = "none", **more: Any) -> Bundle:
    settings = more.pop("settings", SHORT)
    preprocess = more.pop("preprocess", PREPROCESS)
    recipe = ClassifierRecipe(BACKBONE, method, more.pop("set", None), more.pop("views", 2))
    return train_classifier(
        images, recipe, preprocess, settings, root, **{"reporter": quiet(), **more}
    )


@pytest.fixture(scope="module")
def old(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return made(images, tmp_path_factory.mktemp("old") / "bundle")


@pytest.fixture(scope="module")
def new(images: Images, old: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("new") / "bundle"
    return made(images, root, "focal_logit", old=[old], settings=replace(SHORT, seed=1))


def test_a_classifier_learns_and_its_bundle_says_what_it_is(images: Images, old: Bundle) -> None:
    bundle = Bundle.load(old.root)
    assert bundle.role == "classifier"
    assert bundle.train_classes() == images.classes("train")
    assert bundle.space == training.class_space(images.classes("train"))
    probe = bundle.probe()
    logits = models.embed_pixels(models.load_any(bundle), bundle.preprocess, probe.pixels)
    np.testing.assert_allclose(logits, probe.vectors, atol=1e-4)
    epochs = json.loads((old.root / "training" / "history.json").read_text())["epochs"]
    assert epochs[-1]["score"] > 3 / 12  # validation pictures; chance is 1/12
    with pytest.raises(ConfigError, match="gives logits, no vectors"):
        models.load(bundle)


def test_a_child_names_its_old_model(old: Bundle, new: Bundle) -> None:
    assert new.manifest.parent == old.digest
    assert new.manifest.recipe["method.focus"] == 5.0


def test_one_seed_trains_the_same_classifier_twice_and_another_another(
    images: Images, old: Bundle, tmp_path: Path
) -> None:
    assert weights(made(images, tmp_path / "a").root) == weights(old.root)
    other = made(images, tmp_path / "b", settings=replace(SHORT, seed=1))
    assert other.digest != old.digest


def test_a_stopped_run_goes_on_to_the_same_bits(
    images: Images, old: Bundle, new: Bundle, tmp_path: Path
) -> None:
    import os
    import signal

    settings = replace(SHORT, seed=1)
    stop = Tripwire("train classifier", 20, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="--resume"):
        made(images, tmp_path, "focal_logit", old=[old], settings=settings, reporter=stop)
    again = made(images, tmp_path, "focal_logit", old=[old], settings=settings, resume=True)
    assert weights(again.root) == weights(new.root)


@pytest.mark.parametrize("views", [0, 3])
def test_stored_logits_are_the_old_models_of_the_views_that_are_shown(
    views: int, images: Images, old: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[training.ClassifierObjective] = []

    def instead(objective: Any, *args: Any, **kwargs: Any) -> None:
        caught.append(objective)

    monkeypatch.setattr(training, "fit", instead)
    made(images, tmp_path, "focal_kl", old=[old], views=views, settings=replace(SHORT, seed=4))
    (objective,) = caught
    (stored,) = objective.old
    rows = list(images.rows("train"))
    assert stored.shape == (max(1, views), len(rows), 12)
    picked = torch.tensor([0, 5, 17])
    pixels = torch.from_numpy(images.pixels([rows[i] for i in picked], PREPROCESS))
    net = models.load_any(old)
    for number in range(max(1, views)):
        table = objective.tables[number][picked] if views else identity(3)
        with torch.no_grad():
            right = net(View(old.preprocess)(pixels, table)).numpy()
        np.testing.assert_allclose(stored[number, picked.numpy()], right, atol=1e-4)
    if views:
        drawn = objective.draw(views + 1, len(rows), torch.Generator(), SHORT.augment)
        assert torch.equal(drawn, objective.tables[1])


def test_an_old_model_may_have_another_input_size_and_know_fewer_classes(
    images: Images, tmp_path: Path
) -> None:
    keep = {"class03", "class07", "class01"}
    rows = [r for r, label in enumerate(images.labels) if label in keep]
    few = replace(
        images,
        **{
            k: tuple(getattr(images, k)[r] for r in rows)
            for k in ("ids", "labels", "groups", "splits", "roles")
        },
        read=lambda row: images.read(rows[row]),
    )
    short = replace(SHORT, epochs=1)
    small = made(few, tmp_path / "old", preprocess=Preprocess(12), settings=short)
    child = made(images, tmp_path / "new", "focal_logit", old=[small], settings=short)
    assert child.space.dim == 12
    bct = made(images, tmp_path / "bct", "bct", old=[small], settings=short)
    assert bct.space == child.space
    with pytest.raises(ConfigError, match="knows 9 classes"):
        # The new pictures lack what the old one knows.
        made(few, tmp_path / "less", "naive", old=[child], settings=short)
    # What only one of them knows is left out of a comparison, and said.
    found = flipping.compare(
        flipping.side(small.root),
        flipping.side(child.root),
        images,
        tmp_path / "o",
        reporter=quiet(),
    )
    assert set(found.flips.classes) == keep
    assert found.unknown == sum(images.labels[r] not in keep for r in images.rows("test"))


def test_an_ensemble_is_taken_by_its_mean_logits(images: Images, tmp_path: Path) -> None:
    short = replace(SHORT, epochs=1)
    members = train_ensemble(
        images, ClassifierRecipe(BACKBONE, views=1), PREPROCESS, short, tmp_path / "e", 2,
        reporter=quiet(),
    )  # fmt: skip
    assert [m.manifest.recipe["train.seed"] for m in members] == [0, 1]
    assert flipping.members(tmp_path / "e") == tuple(Bundle.load(m.root) for m in members)
    student = made(images, tmp_path / "s", "ldi", old=members, settings=short)
    assert student.manifest.parent not in ("", members[0].digest)
    test = images.rows("test")
    pixels = images.pixels(test, PREPROCESS)
    mean = sum(models.embed_pixels(models.load_any(m), PREPROCESS, pixels) for m in members)
    wrong = np.mean([
        members[0].train_classes()[i] != images.labels[r]
        for i, r in zip(mean.argmax(1), test, strict=True)
    ])  # fmt: skip
    found = flipping.compare(
        flipping.side(tmp_path / "e"), flipping.side(student.root), images, tmp_path / "o",
        reporter=quiet(),
    )  # fmt: skip
    assert found.flips.overall.er_old.value == pytest.approx(wrong)
    with pytest.raises(ConfigError, match="bct needs one old classifier, got 2"):
        made(images, tmp_path / "b", "bct", old=members)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "naive"}, "name its bundle with --old"),
        ({"old": True}, "none looks at no old classifier"),
        ({"mix": 0.5}, "blended pictures have none"),
        ({"open": True}, "needs a closed set"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    change: dict[str, Any], match: str, images: Images, old: Bundle, tmp_path: Path
) -> None:
    mixed = replace(SHORT, augment=replace(SHORT.augment, mix=change.get("mix", 0.0)))
    with pytest.raises(ConfigError, match=match):
        made(
            toy_images() if "open" in change else images,
            tmp_path,
            change.get("method", "none"),
            old=[old] if "old" in change else [],
            settings=mixed,
        )


# -- one classifier against another ----------------------------------------------------------------


def test_a_comparison_counts_what_the_two_nets_answer(
    images: Images, old: Bundle, new: Bundle, tmp_path: Path
) -> None:
    found = flipping.compare(
        flipping.side(old.root), flipping.side(new.root), images, tmp_path, reporter=quiet()
    )
    test = images.rows("test")
    pixels = images.pixels(test, PREPROCESS)
    right = []
    for bundle in (old, new):
        numbers = models.embed_pixels(models.load_any(bundle), PREPROCESS, pixels).argmax(1)
        names = [images.classes("train")[i] for i in numbers]
        right.append([a == images.labels[r] for a, r in zip(names, test, strict=True)])
    broken = sum(a and not b for a, b in zip(*right, strict=True))
    assert found.flips.overall.n == len(test)
    assert found.flips.overall.nfr.value == pytest.approx(broken / len(test))
    assert found.trained == found.unknown == 0
    assert found.decision is None
    assert found.exit_code == 0
    kept = json.loads((tmp_path / "flips.json").read_text())
    assert len(kept["answers"]) == len(test)


def test_pictures_that_a_classifier_was_trained_on_never_count(
    images: Images, old: Bundle, new: Bundle, tmp_path: Path
) -> None:
    sides = flipping.side(old.root), flipping.side(new.root)
    with pytest.raises(DataError, match="was trained on each of the"):
        flipping.compare(*sides, images, tmp_path, split="train", reporter=quiet())
    # The same pictures under other names in the test split are found all the same.
    train, test = images.rows("train"), images.rows("test")
    twin = dict(zip(test, train, strict=False))
    leaky = replace(
        images, read=lambda row: images.read(twin.get(row, row) if row in list(test)[:5] else row)
    )
    found = flipping.compare(*sides, leaky, tmp_path, reporter=quiet())
    assert found.trained == 5
    assert found.flips.overall.n == len(test) - 5


def test_an_old_classifier_that_is_never_right_is_no_measure_to_pass_by(
    images: Images, old: Bundle, new: Bundle, tmp_path: Path
) -> None:
    # The class names moved by one: what was right by them is wrong now.
    names = sorted(set(images.labels))
    after = dict(zip(names, [*names[1:], names[0]], strict=True))
    numbers = models.embed_pixels(
        models.load_any(old), PREPROCESS, images.pixels(images.rows("test"), PREPROCESS)
    ).argmax(1)
    answers = dict(zip(images.rows("test"), (names[i] for i in numbers), strict=True))
    lying = tuple(
        after[answers[r]] if r in answers else label for r, label in enumerate(images.labels)
    )
    sides = flipping.side(old.root), flipping.side(new.root)
    wrong = replace(images, labels=lying)
    assert flipping.compare(*sides, wrong, tmp_path, reporter=quiet()).flips.overall.nfr.value == 0
    with pytest.raises(DataError, match="has nothing to judge"):
        flipping.compare(*sides, wrong, tmp_path, most=0.1, reporter=quiet())


def test_other_bundles_and_half_a_file_name_are_refused(old: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named by --format and --precision"):
        flipping.side(old.root, "onnx")
    with pytest.raises(BundleError, match="no onnx int8 file"):
        flipping.side(old.root, "onnx", "int8")
    with pytest.raises(BundleError, match="not a bundle"):
        flipping.members(tmp_path)
    with pytest.raises(SpaceMismatchError):
        old.space.must_match(training.class_space(["a", "b"]), "two classes")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["hetero", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return int(done.value.code or 0)


@pytest.fixture
def named(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flipping, "load_closed", lambda *_: images)


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize(("most", "code"), [(0.9, 0), (0.0001, 1)])
def test_the_gate_gives_its_exit_code(
    most: float,
    code: int,
    old: Bundle,
    new: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flipped = flipping.compare(
        flipping.side(old.root), flipping.side(new.root), flipping.load_closed("toy"),
        tmp_path / "first", reporter=quiet(),
    ).flips.flipped  # fmt: skip
    if not len(flipped) and code:
        pytest.skip("nothing flipped, so nothing can be too much")
    more = ("--max-nfr", str(most), "--json", "-q", "-o", tmp_path / "out")
    got = command(monkeypatch, "pct", "compare", old.root, new.root, "-d", "toy", *more)
    said = json.loads(capsys.readouterr().out)
    assert said["gate"]["outcome"] == ("pass", "fail", "", "inconclusive")[got]
    assert got in ((code,) if most > 0.5 else (1, 3))


@pytest.mark.usefixtures("named")
def test_commands_train_after_an_old_classifier_and_say_what_they_made(
    old: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new"
    assert command(
        monkeypatch, "pct", "train", "-d", "toy", "--old", old.root, "--backbone", BACKBONE,
        "--size", "16", "--epochs", "1", "--batch", "32", "--views", "1", "--keep-going",
        "--set", "weight=0.5", "-q", "-o", out,
    ) == 0  # fmt: skip
    recipe = Bundle.load(out).manifest.recipe
    assert (recipe["method"], recipe["method.weight"]) == ("focal_logit", 0.5)
    assert "classifier bundle" in capsys.readouterr().out
    assert command(monkeypatch, "embed", out, "-d", "emoji") == 2
    assert "a classifier, which embeds nothing" in capsys.readouterr().err


@pytest.mark.toolchain
@pytest.mark.usefixtures("named")
def test_an_int8_file_is_held_to_its_own_pytorch_model(
    images: Images,
    old: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from hetero import export

    calibration = images.pixels(images.rows("train")[:32], PREPROCESS)
    bundle = Bundle.load(old.root)
    for precision in ("fp32", "int8"):
        bundle = export.export(bundle, "onnx", precision, calibration=calibration)
        facts = bundle.artifact("onnx", precision).facts
        assert facts["cosine_worst"] > {"fp32": 0.99999, "int8": 0.9}[precision]
        assert facts["same_class"] >= {"fp32": 1.0, "int8": 0.8}[precision]
        with export.load(bundle.path(bundle.artifact("onnx", precision)), "onnx") as runner:
            logits = runner(bundle.probe().pixels)
        lengths = np.linalg.norm(logits, axis=1)
        assert not np.allclose(lengths, 1, atol=0.01), "logits as they are, not unit rows"
    got = command(
        monkeypatch, "pct", "compare", old.root, old.root, "-d", "toy", "-f", "onnx", "-p", "fp32",
        "--max-nfr", "0.2", "--json", "-q", "-o", tmp_path / "fp32",
    )  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    assert said["overall"]["nfr"]["value"] == said["overall"]["pfr"]["value"] == 0
    assert got == 0
    on_device = command(
        monkeypatch, "pct", "compare", old.root, old.root, "-d", "toy", "-f", "onnx", "-p", "int8",
        "--device", "local", "--json", "-q", "-o", tmp_path / "int8",
    )  # fmt: skip
    far = json.loads(capsys.readouterr().out)
    here = flipping.compare(
        flipping.side(old.root), flipping.side(old.root, "onnx", "int8"), images, tmp_path / "h",
        reporter=quiet(),
    )  # fmt: skip
    assert on_device == 0
    assert far["overall"]["nfr"]["value"] == pytest.approx(here.flips.overall.nfr.value, abs=0.02)


@pytest.mark.toolchain
@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("format", ["tflite", "coreml"])
def test_the_gate_counts_the_flips_of_a_file_in_any_format(
    format: str,
    precision: str,
    images: Images,
    old: Bundle,
    new: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hetero import export

    calibration = images.pixels(images.rows("train")[:32], PREPROCESS)
    shutil.copytree(new.root, tmp_path / "new")
    try:
        bundle = export.export(
            Bundle.load(tmp_path / "new"), format, precision, calibration=calibration
        )
    except MissingExtraError as error:
        pytest.skip(str(error))
    item = bundle.artifact(format, precision)
    assert item.facts["same_class"] >= {"fp32": 1.0, "int8": 0.8}[precision]
    test = images.rows("test")
    pixels = images.pixels(test, PREPROCESS)
    with export.load(bundle.path(item), format) as runner:
        rows = runner(pixels)
    assert not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=0.01), "logits as they are"
    before = models.embed_pixels(models.load_any(old), PREPROCESS, pixels)
    names = images.classes("train")
    right = [
        [names[n] == images.labels[r] for n, r in zip(x.argmax(1), test, strict=True)]
        for x in (before, rows)
    ]
    broken = sum(a and not b for a, b in zip(*right, strict=True))
    got = command(
        monkeypatch, "pct", "compare", old.root, bundle.root, "-d", "toy", "-f", format,
        "-p", precision, "--max-nfr", "0.99", "--json", "-q", "-o", tmp_path / "flips",
    )  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    assert said["overall"]["nfr"]["value"] == pytest.approx(broken / len(test))
    assert said["gate"]["outcome"] == "pass"
    assert got == 0
    strict = command(
        monkeypatch, "pct", "compare", old.root, bundle.root, "-d", "toy", "-f", format,
        "-p", precision, "--max-nfr", "0.000001", "-q", "-o", tmp_path / "strict",
    )  # fmt: skip
    assert strict == (1 if broken else 3), "so few pictures cannot show that nothing flips"


def test_pictures_are_decoded_once_for_each_way_of_preparing_them(
    images: Images, old: Bundle, tmp_path: Path
) -> None:
    read: list[int] = []
    watched = replace(images, read=lambda row: read.append(row) or images.read(row))
    short = replace(SHORT, epochs=1)
    other = made(images, tmp_path / "other", preprocess=Preprocess(20), settings=short)
    sides = flipping.side(old.root), flipping.Side((old, other))
    flipping.compare(*sides, watched, tmp_path / "out", reporter=quiet())
    assert sorted(read) == sorted(2 * list(images.rows("test"))), "at 16 px and at 20 px"
