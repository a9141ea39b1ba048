"""A gallery model replaced by another one in its space: training, sweep, matrix, refresh, maps."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="upgrading needs the extra 'train'")

from torch import nn  # noqa: E402
from toys import GALLERY, PREPROCESS, QUERY, SIZE, Listener, quiet, toy_images  # noqa: E402

from hetero import cli, compatibility, methods, models, versions  # noqa: E402
from hetero.augment import Augment, View, identity  # noqa: E402
from hetero.bundle import Bundle  # noqa: E402
from hetero.data import Images  # noqa: E402
from hetero.errors import BundleError, ConfigError, DataError, SpaceMismatchError  # noqa: E402
from hetero.evaluate import task  # noqa: E402
from hetero.fit import Settings  # noqa: E402
from hetero.heads import CosineHead, simplex  # noqa: E402
from hetero.maps._stored import StoredMap, joined  # noqa: E402
from hetero.methods import bt2  # noqa: E402
from hetero.metrics import Score, per_query  # noqa: E402
from hetero.refresh import Correction, at_random, ranks  # noqa: E402
from hetero.space import Embeddings  # noqa: E402
from hetero.stages import forwarding, refreshing, upgrading, versioning  # noqa: E402
from hetero.stages.aligning import AlignOptions  # noqa: E402
from hetero.stages.refreshing import RefreshOptions  # noqa: E402
from hetero.stages.upgrading import Point, SweepOptions  # noqa: E402
from hetero.train import (  # noqa: E402
    GalleryRecipe,
    QueryRecipe,
    UpgradeRecipe,
    train_gallery,
    train_query,
    train_upgrade,
)
from hetero.train.upgrade import Held, UpgradeObjective  # noqa: E402

#: 72 pictures to learn from, and 5 classes that nobody learns from.
PICTURES = toy_images(train=8, val=3, test=5, per_class=9)
MILD = Augment(scale=0.1, rotate_deg=0, stretch=0, colour=0.1, grey=0, erase=0)
SETTINGS = Settings(12, batch=16, lr=1e-2, keep_going=True, augment=MILD)
HOLD = {"regression.weight": 20.0}
DIM = 12


def fewer(images: Images, classes: int) -> Images:
    """The collection with its first training classes only."""
    kept = set(images.classes("train")[:classes])
    rows = [r for r, s in enumerate(images.splits) if s != "train" or images.labels[r] in kept]
    part = {
        name: tuple(getattr(images, name)[r] for r in rows)
        for name in ("ids", "labels", "groups", "splits", "roles")
    }
    return replace(images, **part, read=lambda row: images.read(rows[row]))


HALF = fewer(PICTURES, 5)


def upgraded(old: Bundle, root: Path, recipe: UpgradeRecipe, **more: Any) -> Bundle:
    return train_upgrade(old, PICTURES, recipe, SETTINGS, root, reporter=quiet(), **more)


def recipe(**changed: Any) -> UpgradeRecipe:
    return UpgradeRecipe(**{"backbone": GALLERY, "settings": HOLD, "views": 2, **changed})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """old/, new/ (compatible with it), longer/, free/ (not compatible), and query/ of old."""
    root = tmp_path_factory.mktemp("upgrade")
    old = train_gallery(
        HALF, GalleryRecipe(GALLERY, DIM), PREPROCESS, SETTINGS, root / "old", reporter=quiet()
    )
    upgraded(old, root / "new", recipe())
    upgraded(old, root / "longer", recipe(dim=DIM + 6))
    other = replace(SETTINGS, seed=1)
    train_gallery(
        PICTURES, GalleryRecipe(GALLERY, DIM), PREPROCESS, other, root / "free", reporter=quiet()
    )
    train_query(old, PICTURES, QueryRecipe(QUERY), SETTINGS, root / "query", reporter=quiet())
    return root


def seen(bundle: Bundle, split: str = "test") -> Embeddings:
    job = task(PICTURES, split)  # type: ignore[arg-type]
    return models.TorchEmbedder(bundle).embed(job.ids, PICTURES.pixels(job.rows, PREPROCESS))


def score(query: Embeddings, gallery: Embeddings, split: str = "test") -> float:
    ranks = task(PICTURES, split).rank(query, gallery)  # type: ignore[arg-type]
    return float(per_query("average_precision", ranks).mean())


# -- what is trained ------------------------------------------------------------------------------


def test_a_new_gallery_model_is_in_the_space_of_the_old_one(home: Path) -> None:
    old, new = Bundle.load(home / "old"), Bundle.load(home / "new")
    assert new.role == "gallery"
    assert new.space.same_as(old.space)
    assert new.manifest.parent == old.digest
    assert new.digest != old.digest
    assert new.nested == ()
    rows = new.tensors("head")["rows"]
    assert rows.shape == (8, DIM)
    assert new.tensors("head")["classes"].tobytes().decode().split("\n") == list(
        PICTURES.classes("train")
    )
    assert set(new.train_classes()) == set(PICTURES.classes("train"))


def test_new_vectors_are_found_among_old_ones_where_unheld_ones_are_not(home: Path) -> None:
    old, new, free = (seen(Bundle.load(home / n)) for n in ("old", "new", "free"))
    lost = score(free.pretend_in(old.space), old)
    assert score(new, old) > lost + 0.1
    assert score(new, old) > 0.7 * score(old, old)


def test_a_longer_vector_begins_with_the_old_space_and_says_so(home: Path) -> None:
    old, new = Bundle.load(home / "old"), Bundle.load(home / "longer")
    assert new.space.dim == DIM + 6
    assert not new.space.same_as(old.space)
    (held,) = new.nested
    assert held.same_as(old.space)
    assert held.name == old.space.name
    ours, theirs = versions.meet(seen(new), seen(old), new.nested, old.nested)
    free = seen(Bundle.load(home / "free")).pretend_in(old.space)
    assert score(ours, theirs) > score(free, theirs) + 0.1


def test_a_query_model_of_a_longer_gallery_begins_with_the_old_space_too(
    home: Path, tmp_path: Path
) -> None:
    new = Bundle.load(home / "longer")
    short = replace(SETTINGS, epochs=2)
    made = train_query(
        new, PICTURES, QueryRecipe(QUERY), short, tmp_path / "query", reporter=quiet()
    )
    assert [s.id for s in made.nested] == [s.id for s in new.nested]


def test_a_manifest_that_holds_a_space_as_long_as_its_own_is_refused(home: Path) -> None:
    from hetero._manifest import sealed

    new = Bundle.load(home / "longer")
    path = new.root / "manifest.json"
    kept = path.read_text()
    wrong = new.manifest.nested[0].model_copy(update={"dim": DIM + 6})
    path.write_text(json.dumps(sealed(new.manifest.model_copy(update={"nested": (wrong,)}))))
    try:
        with pytest.raises(BundleError, match="not shorter than its own"):
            Bundle.load(new.root)
    finally:
        path.write_text(kept)


def test_a_shorter_vector_is_lifted_into_the_old_space(home: Path, tmp_path: Path) -> None:
    old = Bundle.load(home / "old")
    short = replace(SETTINGS, epochs=1)
    made = train_upgrade(old, PICTURES, recipe(dim=6), short, tmp_path / "short", reporter=quiet())
    assert made.manifest.model.inner == 6
    assert made.space.same_as(old.space)


def test_a_chain_is_held_to_its_own_ancestors_only(home: Path, tmp_path: Path) -> None:
    old, new, free = (Bundle.load(home / n) for n in ("old", "new", "free"))
    third = upgraded(new, tmp_path / "third", recipe(), ancestors=(old,))
    assert third.manifest.parent == new.digest
    assert third.manifest.recipe["ancestors"] == old.digest
    with pytest.raises(SpaceMismatchError, match="its own ancestors only"):
        upgraded(new, tmp_path / "wrong", recipe(), ancestors=(free,))


def test_bt2_keeps_the_old_space_first_and_the_unheld_models_vectors_in_another_basis(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, free = Bundle.load(home / "old"), Bundle.load(home / "free")
    bases: list[Any] = []
    own = bt2.Method.own
    monkeypatch.setattr(
        bt2.Method, "own", lambda self, setup: bases.append(own(self, setup)) or bases[-1]
    )
    made = upgraded(
        old,
        tmp_path / "made",
        recipe(method="bt2", settings=None, dim=DIM + 6),
        independent=free,
    )
    assert made.space.dim == DIM + 6
    assert [s.id for s in made.nested] == [old.space.id]
    assert made.manifest.recipe["independent"] == free.digest
    ours, theirs = versions.meet(seen(made), seen(old), made.nested, old.nested)
    assert score(ours, theirs) > score(seen(free).pretend_in(old.space), theirs) + 0.1
    (basis,) = bases
    assert float(basis.first.detach().abs().max()) > 0, "the basis is learnt with the model"
    learnt = task(PICTURES, "train")
    pixels = PICTURES.pixels(learnt.rows, PREPROCESS)
    whole, alone = (models.TorchEmbedder(b).embed(learnt.ids, pixels).vectors for b in (made, free))
    read = basis.own_part(torch.from_numpy(whole.copy())).detach().numpy()
    near = (read * alone).sum(1) / np.linalg.norm(read, axis=1)
    assert near.mean() > (whole[:, :DIM] * alone).sum(1).mean() + 0.2


def test_bt2_is_refused_without_the_unheld_model_and_other_methods_with_it(
    home: Path, tmp_path: Path
) -> None:
    old, free = Bundle.load(home / "old"), Bundle.load(home / "free")
    with pytest.raises(ConfigError, match=r"trained on its own: .*--independent"):
        upgraded(old, tmp_path, recipe(method="bt2", settings=None))
    with pytest.raises(ConfigError, match="has no use for an independent model"):
        upgraded(old, tmp_path, recipe(), independent=free)
    other = replace(PREPROCESS, fit="squash")
    short = replace(SETTINGS, epochs=1)
    wrong = train_gallery(
        PICTURES, GalleryRecipe(GALLERY, DIM), other, short, tmp_path / "wrong", reporter=quiet()
    )
    with pytest.raises(ConfigError, match="prepared differently"):
        upgraded(old, tmp_path, recipe(method="bt2", settings=None), independent=wrong)
    with pytest.raises(ConfigError, match="hetero upgrade train"):
        train_query(
            old, PICTURES, QueryRecipe(QUERY, "bt2"), short, tmp_path / "q", reporter=quiet()
        )


def test_a_finished_upgrade_is_taken_over_and_another_one_is_not(
    home: Path, tmp_path: Path
) -> None:
    old, heard = Bundle.load(home / "old"), Listener()
    again = train_upgrade(
        old, PICTURES, recipe(), SETTINGS, home / "new", resume=True, reporter=heard
    )
    assert heard.lines == [f"upgraded gallery model: {home / 'new'} is finished"]
    assert again.digest == Bundle.load(home / "new").digest
    assert "train upgrade (bct+regression)" not in heard.jobs


def test_bct_keeps_no_classifier_of_its_own_unless_it_is_asked_for() -> None:
    plain = methods.settings_of(UpgradeRecipe().made())
    assert plain["bct.own_weight"] == 0
    assert methods.settings_of(UpgradeRecipe(method="bct").made())["own_weight"] == 0
    asked = UpgradeRecipe(settings={"bct.own_weight": "0.5"})
    assert methods.settings_of(asked.made())["bct.own_weight"] == 0.5
    assert methods.settings_of(UpgradeRecipe(method="ract").made()) == {
        "weight": 1.0,
        "temperature": 0.05,
    }


def test_the_loss_is_the_own_entropy_and_the_mean_of_what_holds_to_each_ancestor() -> None:
    torch.manual_seed(0)
    net = models.build(GALLERY, 6, SIZE).eval()
    head = CosineHead(6, 8)
    pixels = torch.from_numpy(PICTURES.pixels(PICTURES.rows("train")[:10], PREPROCESS))
    labels = torch.arange(10) % 8
    stored = [np.eye(10, d, dtype=np.float32)[None] for d in (6, 4)]
    regression = methods.make("regression", {"weight": 3.0})
    held = [Held(regression, nn.Identity(), methods.Setup(s), s.shape[2]) for s in stored]
    view = View(PREPROCESS)
    objective = UpgradeObjective(net, head, held, view, labels, []).eval()
    rows, plain = torch.arange(4), identity(10)[:4]
    with torch.no_grad():
        found = objective(pixels[:4], plain, rows, 0, 0.0)
        vectors = net(view(pixels[:4], plain))
        entropy = nn.functional.cross_entropy(head(vectors, labels[:4]), labels[:4])
    expected = float(entropy)
    for d in (6, 4):
        for i, v in enumerate(vectors.numpy()[:, :d]):
            # The stored row of picture i is the i-th axis.
            along = v[i] / np.linalg.norm(v) if i < d else 0.0
            expected += 3 * (1 - along) / 4 / 2
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_what_cannot_be_trained_is_refused_in_one_line(home: Path, tmp_path: Path) -> None:
    old = Bundle.load(home / "old")
    with pytest.raises(ConfigError, match="counts"):
        UpgradeRecipe(views=-1)
    with pytest.raises(DataError, match="no labels"):
        train_upgrade(
            old, replace(PICTURES, labelled=False), recipe(), SETTINGS, tmp_path, reporter=quiet()
        )
    mixing = replace(SETTINGS, augment=replace(MILD, mix=0.5))
    with pytest.raises(ConfigError, match="blended pictures have none"):
        train_upgrade(old, PICTURES, recipe(), mixing, tmp_path, reporter=quiet())


# -- a fixed classifier with room for classes to come ---------------------------------------------


def test_a_simplex_goes_on_where_the_generation_before_left_off(home: Path, tmp_path: Path) -> None:
    short = replace(SETTINGS, epochs=1)
    first = train_gallery(
        HALF,
        GalleryRecipe(GALLERY, DIM, "simplex"),
        PREPROCESS,
        short,
        tmp_path / "first",
        reporter=quiet(),
    )
    held = recipe(head="simplex", method="regression", settings=None)
    second = train_upgrade(first, PICTURES, held, short, tmp_path / "second", reporter=quiet())

    def head(bundle: Bundle) -> dict[str, np.ndarray]:
        tensors = bundle.tensors("head")
        names = tensors["classes"].tobytes().decode().split("\n")
        return dict(zip(names, tensors["rows"], strict=True))

    before, after = head(first), head(second)
    assert len(before) == 5
    assert len(after) == 8
    for name, row in before.items():
        np.testing.assert_array_equal(after[name], row)
    rows = np.stack(list(after.values()))
    expected = np.full((8, 8), -1 / DIM)
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(rows @ rows.T, expected, atol=1e-5)
    assert all(np.abs(simplex(DIM) - row).sum(1).min() < 1e-5 for row in rows)
    with pytest.raises(ConfigError, match="its classifier is not a simplex"):
        train_upgrade(
            Bundle.load(home / "old"), PICTURES, held, short, tmp_path / "x", reporter=quiet()
        )


# -- the version matrix ---------------------------------------------------------------------------


def test_the_version_matrix_finds_each_query_its_home_and_judges_it(home: Path) -> None:
    old, new, free = (Bundle.load(home / n) for n in ("old", "new", "free"))
    found = versioning.version_matrix([new, old], [old, new], PICTURES, quiet(), free=free)
    assert found.matrix.queries == ("old", "new")
    cells = {(c.query, c.gallery): c for c in found.matrix.cells}
    assert cells["new", "old"].kind == "newer query"
    assert cells["old", "new"].kind == "older query"
    expected = {(a, b): score(seen(x), seen(y)) for a, x in (("old", old), ("new", new))
                for b, y in (("old", old), ("new", new))}  # fmt: skip
    for where, cell in cells.items():
        assert cell.judged["map"].score.value == pytest.approx(expected[where])
    alone = score(seen(free), seen(free))
    tax, gain = found.tax["map"].value, found.gain["map"]["old"]
    assert tax == pytest.approx(alone - expected["new", "new"])
    before = expected["old", "old"]
    ranks = task(PICTURES, "test").rank
    whole = compatibility.difference(
        ranks(seen(free), seen(free)), ranks(seen(old), seen(old)), "average_precision"
    )
    assert whole.ci is not None
    if whole.ci[0] <= 0 <= whole.ci[1]:
        assert gain is None
    else:
        assert gain == pytest.approx((expected["new", "old"] - before) / (alone - before))


def test_a_query_bundle_in_the_field_goes_on_with_the_new_gallery(home: Path) -> None:
    query, old, new = (Bundle.load(home / n) for n in ("query", "old", "new"))
    found = versioning.version_matrix([query], [old, new], PICTURES, quiet(), metrics=("map",))
    own, crossed = found.matrix.cells
    assert (own.kind, crossed.kind) == ("own", "older query")
    assert crossed.judged["map"].outcome in ("pass", "fail", "inconclusive")
    longer = Bundle.load(home / "longer")
    found = versioning.version_matrix([query], [old, longer], PICTURES, quiet(), metrics=("map",))
    assert found.matrix.cells[1].judged["map"].score.value > 0.3


def test_a_query_bundle_of_no_gallery_here_is_refused(home: Path) -> None:
    query, new, free = (Bundle.load(home / n) for n in ("query", "new", "free"))
    with pytest.raises(ConfigError, match=r"none of .*new"):
        versioning.version_matrix([query], [new], PICTURES, quiet())
    old = Bundle.load(home / "old")
    with pytest.raises(SpaceMismatchError, match="share no space"):
        versioning.version_matrix([old, free], [old, free], PICTURES, quiet())


def test_a_model_is_not_scored_on_classes_it_was_trained_on(home: Path) -> None:
    old, new = Bundle.load(home / "old"), Bundle.load(home / "new")
    leaky = replace(
        PICTURES,
        splits=tuple({"train": "test", "test": "train"}.get(s, s) for s in PICTURES.splits),
    )
    with pytest.raises(DataError, match="were trained on"):
        versioning.version_matrix([old, new], [old, new], leaky, quiet())


# -- refresh --------------------------------------------------------------------------------------


def test_a_refresh_is_drawn_from_the_old_index_to_the_new_one(home: Path, tmp_path: Path) -> None:
    old, new, free = (Bundle.load(home / n) for n in ("old", "new", "free"))
    done = refreshing.refresh(
        old,
        new,
        PICTURES,
        RefreshOptions(shares=(0.0, 0.5, 1.0)),
        tmp_path,
        quiet(),
        control=free,
    )
    assert {"random", "uncertain first", "control"} <= set(done.curves)
    for name in ("random", "uncertain first"):
        assert done.curves[name].scores[0] == pytest.approx(score(seen(new), seen(old)))
        assert done.curves[name].scores[-1] == pytest.approx(score(seen(new), seen(new)))
    lost = seen(free).pretend_in(old.space)
    assert done.curves["control"].scores[0] == pytest.approx(score(lost, seen(old)))
    assert done.before == pytest.approx(score(seen(old), seen(old)))
    assert done.complete == pytest.approx(done.curves["random"].scores[-1])
    written = json.loads((tmp_path / "refresh.json").read_text())
    assert written["curves"]["random"]["area"] == pytest.approx(done.curves["random"].area)
    assert (tmp_path / "refresh.svg").read_text().count("area") >= 3


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_a_correction_is_kept_where_validation_classes_rank_no_worse_with_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: float
) -> None:
    old, new = Bundle.load(home / "old"), Bundle.load(home / "new")
    # An offset above all cosines ranks every old row, wrong or right, before every new one.
    made = Correction(1.0, offset)
    monkeypatch.setattr(refreshing, "fit_correction", lambda *_: made)
    heard = Listener()
    options = RefreshOptions(shares=(0.0, 0.5, 1.0), orders=1)
    done = refreshing.refresh(old, new, PICTURES, options, tmp_path, heard)
    told = [line for line in heard.lines if "left as they are" in line]
    job = task(PICTURES, "val")
    half = at_random(job.gallery_ids, 0)[: len(job.gallery_ids) // 2]
    sides = seen(new, "val"), seen(old, "val"), seen(new, "val")
    plain, corrected = (
        per_query("average_precision", ranks(job, *sides, half, how)).mean() for how in (None, made)
    )
    helps = corrected >= plain
    assert helps == (offset == 0.0)
    assert done.correction == (made if helps else None)
    assert ("random, corrected" in done.curves) == helps == (not told)
    if told:
        assert f"scores {100 * corrected:.1f}, and {100 * plain:.1f} without" in told[0]


def test_a_refresh_is_a_failure_where_a_curve_falls_below_its_start() -> None:
    from hetero.refresh import Curve

    fine, worse = Curve((0.0, 0.5, 1.0), (0.5, 0.495, 0.6)), Curve((0.0, 0.5, 1.0), (0.5, 0.4, 0.6))
    made = refreshing.Refreshed({"random": fine, "control": worse}, None, 0.5, 0.6)
    assert made.outcome == "pass"
    assert replace(made, curves={"random": worse}).outcome == "fail"


def test_models_that_share_no_space_are_refreshed_by_a_map(home: Path, tmp_path: Path) -> None:
    old, free = Bundle.load(home / "old"), Bundle.load(home / "free")
    options = RefreshOptions(shares=(0.0, 1.0), orders=1)
    with pytest.raises(SpaceMismatchError, match="share no space"):
        refreshing.refresh(old, free, PICTURES, options, tmp_path, quiet())
    path = tmp_path / "map.safetensors"
    forwarding.forward_map(old, free, PICTURES, AlignOptions("procrustes"), path, quiet())
    done = refreshing.refresh(old, free, PICTURES, replace(options, map=path), tmp_path, quiet())
    led = StoredMap.load(path).apply(seen(old))
    assert done.curves["random"].scores[0] == pytest.approx(score(seen(free), led))


def test_shares_have_to_run_from_none_to_all() -> None:
    with pytest.raises(ConfigError, match="both ends"):
        RefreshOptions(shares=(0.0, 0.5))
    with pytest.raises(ConfigError, match="unknown metric"):
        RefreshOptions(metric="ndcg")


# -- forward maps ---------------------------------------------------------------------------------


def test_a_map_for_stored_vectors_is_written_and_read_back(home: Path, tmp_path: Path) -> None:
    old, free, new = (Bundle.load(home / n) for n in ("old", "free", "new"))
    path = tmp_path / "map.safetensors"
    done = forwarding.forward_map(
        old, free, PICTURES, AlignOptions("affine", {"rank": 6}), path, quiet()
    )
    assert done.map.source.same_as(old.space)
    assert done.map.target.same_as(free.space)
    moved = done.map.apply(seen(old))
    assert moved.space.same_as(free.space)
    again = StoredMap.load(path)
    np.testing.assert_allclose(again.apply(seen(old)).vectors, moved.vectors, atol=1e-6)
    assert again.settings["rank"] == 6
    val = (seen(b, "val") for b in (free, old))
    query, stored = val
    assert done.mapped.map.value == pytest.approx(score(query, done.map.apply(stored), "val"))
    with pytest.raises(SpaceMismatchError):
        done.map.apply(seen(free))
    with pytest.raises(ConfigError, match="takes no side information"):
        done.map.apply(seen(old), seen(new))


def test_side_information_is_the_other_half_of_what_is_mapped(home: Path, tmp_path: Path) -> None:
    old, free = Bundle.load(home / "old"), Bundle.load(home / "free")
    side = Bundle.load(home / "longer")
    path = tmp_path / "map.safetensors"
    done = forwarding.forward_map(
        old, free, PICTURES, AlignOptions("procrustes"), path, quiet(), side=side
    )
    rows = joined(seen(old), seen(side))
    assert rows.shape[1] == DIM + DIM + 6
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(rows[:, :DIM] * np.sqrt(2), seen(old).vectors, atol=1e-6)
    again = StoredMap.load(path)
    np.testing.assert_allclose(
        again.apply(seen(old), seen(side)).vectors,
        done.map.apply(seen(old), seen(side)).vectors,
        atol=1e-6,
    )
    with pytest.raises(ConfigError, match="needs that of"):
        again.apply(seen(old))
    with pytest.raises(DataError, match="have no side information"):
        again.apply(seen(old), seen(side).take(seen(side).ids[:3]))


def test_a_file_that_is_no_map_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(BundleError, match="cannot be read as a map"):
        StoredMap.load(path)
    from geometry import on_circle

    on_circle(0, 90).save(path)
    with pytest.raises(BundleError, match=r"'hetero.map/1'; `hetero upgrade map` writes a map"):
        StoredMap.load(path)


# -- the sweep ------------------------------------------------------------------------------------


def points(*pairs: tuple[float, float]) -> list[Point]:
    leads = {"map": Score(0.0, (-0.1, 0.1), 9)}
    return [Point(f"p{i}", 1.0, 0.0, x, y, leads) for i, (x, y) in enumerate(pairs)]


def leading(name: str, own: float, **leads: tuple[float, float]) -> Point:
    scores = {m: Score((low + high) / 2, (low, high), 9) for m, (low, high) in leads.items()}
    return Point(name, 1.0, 0.0, 0.3, own, scores)


def test_the_frontier_is_what_no_other_point_beats_in_both() -> None:
    some = points((0.2, 0.9), (0.4, 0.8), (0.3, 0.7), (0.5, 0.5), (0.5, 0.4))
    assert upgrading.frontier(some) == ("p0", "p1", "p3")


def test_of_points_that_are_sure_to_meet_the_criterion_the_best_in_its_own_index_is_taken() -> None:
    lucky = leading("lucky", 0.9, map=(-0.01, 0.05), recall_at_1=(-0.1, 0.1))
    trading = leading("trading", 0.8, map=(0.01, 0.05), recall_at_1=(-0.1, -0.01))
    sure = leading("sure", 0.6, map=(0.01, 0.05), recall_at_1=(-0.1, 0.1))
    dull = leading("dull", 0.5, map=(0.04, 0.05), recall_at_1=(0.0, 0.1))
    assert [p.meets for p in (lucky, trading, sure, dull)] == [False, False, True, True]
    assert upgrading.choose([lucky, trading, sure, dull]).name == "sure"


def test_where_no_point_is_sure_the_surest_is_taken() -> None:
    far = leading("far", 0.9, map=(-0.05, 0.2), recall_at_1=(-0.1, 0.1))
    near = leading("near", 0.6, map=(-0.01, 0.01), recall_at_1=(-0.1, 0.1))
    assert upgrading.choose([far, near]).name == "near"


def test_without_an_interval_no_point_is_sure_and_the_widest_lead_is_taken() -> None:
    some = [replace(p, leads={"map": Score(p.own / 2, None, 1)}) for p in points((0, 0.1), (0, 1))]
    assert not any(p.meets for p in some)
    assert upgrading.choose(some).name == "p1"


def test_a_sweep_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing holds the new model"):
        SweepOptions((0.0,), (0.0,))
    with pytest.raises(ConfigError, match="at least 0"):
        SweepOptions((-1.0,), (1.0,))


def test_a_sweep_keeps_every_point_goes_on_and_ends_in_a_verdict(
    home: Path, tmp_path: Path
) -> None:
    old = Bundle.load(home / "old")
    short = replace(SETTINGS, epochs=3)
    options = SweepOptions((1.0,), (0.0, 20.0), rounds=0)

    def swept(heard: Any) -> Any:
        return upgrading.sweep(
            old, PICTURES, recipe(settings=None), short, options, tmp_path, heard
        )

    best, tried, found = swept(quiet())
    names = [p.name for p in tried.points]
    assert names == [
        upgrading.TURNED,
        "influence-1-regression-0",
        "influence-1-regression-20",
    ]
    for p in tried.points[1:]:
        made = Bundle.load(tmp_path / "points" / p.name)
        assert made.manifest.recipe["method.regression.weight"] == p.regression
        ours, theirs = seen(made, "val"), seen(old, "val")
        assert p.crossed == pytest.approx(score(ours, theirs, "val"))
        assert p.own == pytest.approx(score(ours, ours, "val"))
        assert p.leads["map"].value == pytest.approx(p.crossed - tried.before)
    assert tried.before == pytest.approx(score(theirs, theirs, "val"))
    assert best.digest == Bundle.load(tmp_path / "points" / tried.chosen).digest
    assert json.loads((tmp_path / "sweep.json").read_text())["chosen"] == tried.chosen
    assert "frontier" not in (tmp_path / "frontier.svg").read_text()[:200]
    written = json.loads((tmp_path / "verdict.json").read_text())
    assert written["outcome"] == found.matrix.outcome
    assert found.tax["map"].value == pytest.approx(
        score(seen(Bundle.load(tmp_path / "free")), seen(Bundle.load(tmp_path / "free")))
        - score(seen(best), seen(best))
    )
    heard = Listener()
    _, again, _ = swept(heard)
    assert again == tried
    assert not any(job.startswith("train") for job in heard.jobs), "nothing is trained twice"


# -- the command ----------------------------------------------------------------------------------


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str | Path
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["hetero", *map(str, words)])
    monkeypatch.setattr("hetero.data.load", lambda spec, seed=0: PICTURES)
    with pytest.raises(SystemExit) as left:
        cli.main()
    out = capsys.readouterr()
    return int(left.value.code or 0), out.out, out.err


def test_the_commands_say_what_they_found_and_leave_with_its_code(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, free = home / "old", home / "new", home / "free"
    galleries = ("--gallery", old, "--gallery", new)
    code, out, _ = run(
        monkeypatch, capsys, "upgrade", "matrix", old, new, *galleries, "--free", free,
        "--json", "-q", "--data", "toy", "-o", tmp_path / "matrix.json",
    )  # fmt: skip
    value = json.loads(out)
    assert code == {"pass": 0, "fail": 1, "inconclusive": 3}[value["outcome"]]
    assert json.loads((tmp_path / "matrix.json").read_text()) == value
    code, out, _ = run(
        monkeypatch, capsys, "upgrade", "matrix", old, new, *galleries, "-q", "--data", "toy"
    )
    assert "average compatibility" in out
    assert f"verdict: {value['outcome']}" in out
    code, out, _ = run(
        monkeypatch, capsys, "upgrade", "refresh", old, new, "--shares", "0,1",
        "--orders", "1", "-q", "--data", "toy", "-o", tmp_path,
    )  # fmt: skip
    assert code in (0, 1)
    assert "uncertain first" in out
    code, out, err = run(
        monkeypatch, capsys, "upgrade", "map", old, free, "--map", "procrustes", "-q",
        "--data", "toy", "-o", tmp_path / "m.safetensors",
    )  # fmt: skip
    assert code == 0, err
    assert "new model, old index mapped" in out
    code, out, _ = run(
        monkeypatch, capsys, "upgrade", "train", "--old", old, "--backbone", GALLERY,
        "--epochs", "2", "--batch", "16", "--views", "1", "--keep-going", "-q", "--data", "toy",
        "-o", tmp_path / "made",
    )  # fmt: skip
    assert code in (0, 1, 3)
    assert Bundle.load(tmp_path / "made").space.same_as(Bundle.load(old).space)
    assert "verdict: " in out


def test_a_misspelt_option_of_the_command_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(
        monkeypatch, capsys, "upgrade", "train", "--old", home / "old", "--data", "toy", "--sweep",
        "--regressions", "0;10",
    )  # fmt: skip
    assert code == 2
    assert "--regressions '0;10': write numbers" in err
