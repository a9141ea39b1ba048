from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import (
    GALLERY,
    PREPROCESS,
    QUERY,
    Listener,
    Tripwire,
    quiet,
    toy_images,
    weights,
)

import hetero
from hetero import evaluate, methods, models
from hetero.augment import Augment, View, gather
from hetero.bundle import Bundle, space_digest
from hetero.data import Images
from hetero.errors import BundleError, ConfigError, DataError, Interrupted, TrainingError
from hetero.fit import Settings
from hetero.progress import Reporter
from hetero.retrieval import pairwise_cosine
from hetero.train import GalleryRecipe, QueryRecipe, train_gallery, train_query
from hetero.train import query as training

SHORT = Settings(epochs=3, batch=16)
STEPS = 9  # 48 pictures in batches of 16, three epochs
GALLERY_RECIPE = GalleryRecipe(GALLERY, dim=12)
QUERY_RECIPE = QueryRecipe(QUERY)
MILD = Augment(scale=0.1, rotate_deg=0, stretch=0, colour=0.1, grey=0, erase=0)


def gallery_model(
    root: Path,
    settings: Settings = SHORT,
    recipe: GalleryRecipe = GALLERY_RECIPE,
    images: Images | None = None,
    **more: Any,
) -> Bundle:
    more.setdefault("reporter", quiet())
    return train_gallery(images or toy_images(), recipe, PREPROCESS, settings, root, **more)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gallery_model(tmp_path_factory.mktemp("gallery"))


def query_model(
    root: Path,
    gallery: Bundle,
    settings: Settings = SHORT,
    recipe: QueryRecipe = QUERY_RECIPE,
    images: Images | None = None,
    **more: Any,
) -> Bundle:
    more.setdefault("reporter", quiet())
    return train_query(gallery, images or toy_images(), recipe, settings, root, **more)


def history(root: Path) -> list[dict[str, float]]:
    epochs = json.loads((root / "training" / "history.json").read_text())["epochs"]
    return [{k: v for k, v in row.items() if k != "images_per_s"} for row in epochs]


# -- what a bundle says ---------------------------------------------------------------------------


def test_a_gallery_models_weights_and_preprocessing_are_its_space(gallery: Bundle) -> None:
    weights_hash = gallery.artifact("weights").sha256
    assert gallery.space.digest == space_digest(weights_hash, PREPROCESS, 12)
    assert gallery.role == "gallery"
    assert gallery.manifest.parent == ""


def test_a_query_model_inherits_the_gallerys_space_and_preprocessing(
    gallery: Bundle, tmp_path: Path
) -> None:
    query = query_model(tmp_path, gallery)
    assert query.role == "query"
    assert query.space == gallery.space
    assert query.preprocess == gallery.preprocess
    assert query.manifest.parent == gallery.digest
    assert query.digest != gallery.digest


@pytest.mark.parametrize("role", ["gallery", "query"])
def test_a_bundle_records_what_it_was_made_from(gallery: Bundle, tmp_path: Path, role: str) -> None:
    recipe = QueryRecipe(QUERY, "bct", {"influence": 0.5}, views=2)
    bundle = gallery if role == "gallery" else query_model(tmp_path, gallery, recipe=recipe)
    manifest = Bundle.load(bundle.root).manifest
    wanted: dict[str, Any] = {"train.epochs": 3, "train.batch": 16, "augment.flip": 0.0}
    if role == "gallery":
        wanted |= {"backbone": GALLERY, "method": "classification", "head": "cosine", "dim": 12}
    else:
        wanted |= {"backbone": QUERY, "method": "bct", "views": 2}
        wanted |= {"method.influence": 0.5, "method.margin": 0.1}
    assert wanted.items() <= manifest.recipe.items()
    images = toy_images()
    assert manifest.data == {
        "source": "toy",
        "digest": images.digest,
        "train_pictures": 48,
        "train_classes": 8,
    }
    assert {"python", "torch", "numpy"} <= manifest.made_with.keys()
    net = models.load(bundle)
    assert (manifest.model.parameters, manifest.model.macs) == models.count(net, 16)


@pytest.mark.parametrize("role", ["gallery", "query"])
def test_the_probe_is_of_validation_pictures_and_has_the_vectors_of_the_loaded_model(
    gallery: Bundle, tmp_path: Path, role: str
) -> None:
    bundle = gallery if role == "gallery" else query_model(tmp_path, gallery)
    images = toy_images()
    probe = bundle.probe()
    rows = [images.ids.index(i) for i in probe.ids]
    assert {images.splits[r] for r in rows} == {"val"}
    assert np.array_equal(probe.pixels, images.pixels(rows, PREPROCESS))
    vectors = models.embed_pixels(models.load(Bundle.load(bundle.root)), PREPROCESS, probe.pixels)
    assert np.array_equal(probe.vectors, vectors)
    assert bundle.train_classes() == images.classes("train")


def test_the_gallerys_head_has_a_unit_row_for_each_training_class(gallery: Bundle) -> None:
    head = gallery.tensors("head")
    names = head["classes"].tobytes().decode().split("\n")
    assert tuple(names) == toy_images().classes("train")
    assert head["rows"].shape == (8, 12)
    np.testing.assert_allclose(np.linalg.norm(head["rows"], axis=1), 1, rtol=1e-5)


def test_what_was_only_needed_for_training_is_gone_afterwards(
    gallery: Bundle, tmp_path: Path
) -> None:
    query_model(tmp_path, gallery, recipe=replace(QUERY_RECIPE, views=2))
    for root in (gallery.root, tmp_path):
        assert [p.name for p in (root / "training").iterdir()] == ["history.json"]


# -- what is looked at ----------------------------------------------------------------------------


def test_no_picture_of_a_test_class_is_read_while_training(tmp_path: Path) -> None:
    read: list[int] = []
    images = toy_images()

    def listening(row: int) -> np.ndarray:
        read.append(row)
        return images.read(row)

    spied = replace(images, read=listening)
    made = gallery_model(tmp_path / "g", images=spied)
    query_model(tmp_path / "q", made, images=spied)
    assert set(read) == {*images.rows("train"), *images.rows("val")}


def test_the_gallery_model_runs_before_training_and_never_during_it(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    at_start: list[int] = []
    loaded: list[Bundle] = []
    load, fit = models.load, training.fit

    def counting(bundle: Bundle) -> models.EmbeddingNet:
        loaded.append(bundle)
        net = load(bundle)
        net.register_forward_hook(lambda *_: runs.append(1))
        return net

    def watched(*args: Any, **kwargs: Any) -> Any:
        at_start.append(len(runs))
        return fit(*args, **kwargs)

    monkeypatch.setattr(models, "load", counting)
    monkeypatch.setattr(training, "fit", watched)
    query_model(tmp_path, gallery, replace(SHORT, epochs=5))
    assert loaded == [gallery]
    # Once for the 48 training pictures and once for the validation pictures, and no more.
    assert at_start == [2]
    assert len(runs) == 2


def objective_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects what train hands to fit, which then does nothing."""
    handed: list[Any] = []
    monkeypatch.setattr(training, "fit", lambda objective, *_, **__: handed.append(objective))
    return handed


def test_stored_vectors_are_those_of_the_plain_pictures(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = objective_of(monkeypatch)
    query_model(tmp_path, gallery)
    images = toy_images()
    pixels = images.pixels(images.rows("train"), PREPROCESS)
    direct = models.embed_pixels(models.load(gallery), PREPROCESS, pixels)
    assert handed[0].setup.gallery.shape == (1, 48, 12)
    np.testing.assert_allclose(handed[0].setup.gallery[0], direct, atol=1e-4)


def test_stored_views_are_the_views_that_training_shows_to_the_query_model(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = objective_of(monkeypatch)
    query_model(tmp_path, gallery, recipe=replace(QUERY_RECIPE, views=2))
    (objective,) = handed
    images, net, view = toy_images(), models.load(gallery), View(PREPROCESS)
    pixels = torch.from_numpy(images.pixels(images.rows("train"), PREPROCESS))
    assert objective.setup.gallery.shape == (2, 48, 12)
    for epoch in range(4):
        shown = objective.draw(epoch, 48, torch.Generator(), SHORT.augment)
        with torch.no_grad():
            expected = torch.cat(
                [net(view(pixels[i : i + 5], shown[i : i + 5])) for i in range(0, 48, 5)]
            )
        np.testing.assert_allclose(objective.setup.gallery[epoch % 2], expected, atol=1e-4)
    assert not np.allclose(objective.setup.gallery[0], objective.setup.gallery[1], atol=1e-2)


def test_the_loss_holds_each_picture_to_its_own_stored_vector_label_and_head_row(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = objective_of(monkeypatch)
    query_model(tmp_path, gallery, recipe=QueryRecipe(QUERY, "bct", views=3))
    (objective,) = handed
    steps: list[methods.Step] = []

    class Spy:
        needs: frozenset[str] = frozenset()

        def own(self, setup: methods.Setup) -> torch.nn.Module:
            return torch.nn.Identity()

        def loss(self, step: methods.Step, own: torch.nn.Module) -> torch.Tensor:
            steps.append(step)
            return step.query.sum()

    objective.method = Spy()
    images = toy_images()
    pixels = torch.from_numpy(images.pixels(images.rows("train"), PREPROCESS))
    rows = torch.tensor([40, 3, 17])
    objective(pixels[rows], objective.tables[1][rows], rows, 4, 0.25)
    (step,) = steps
    assert np.array_equal(step.gallery, objective.setup.gallery[1][rows])
    assert step.labels is not None
    assert step.labels.tolist() == [40 // 6, 3 // 6, 17 // 6]
    assert step.rows.tolist() == [40, 3, 17]
    # The same classes in the same order.
    assert torch.equal(objective.setup.head_labels, objective.setup.labels)
    assert np.array_equal(objective.setup.head, gallery.tensors("head")["rows"])
    assert step.progress == 0.25


@pytest.mark.parametrize("method", ["regression", "bct"])
def test_only_the_query_model_and_the_methods_own_part_are_trained(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    handed = objective_of(monkeypatch)
    query_model(tmp_path, gallery, recipe=QueryRecipe(QUERY, method))
    (objective,) = handed
    names = {name.partition(".")[0] for name, _ in objective.named_parameters()}
    assert names == ({"net", "own"} if method == "bct" else {"net"})


# -- repeatable -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 5])
def test_one_seed_trains_the_same_gallery_model_twice_and_so_the_same_space(
    tmp_path: Path, seed: int
) -> None:
    settings = replace(SHORT, seed=seed)
    one = gallery_model(tmp_path / "a", settings)
    torch.rand(5)
    other = gallery_model(tmp_path / "b", settings)
    assert weights(one.root) == weights(other.root)
    assert one.space.digest == other.space.digest
    assert history(one.root) == history(other.root)


def test_another_seed_gives_another_space(gallery: Bundle, tmp_path: Path) -> None:
    other = gallery_model(tmp_path, replace(SHORT, seed=1))
    assert not other.space.same_as(gallery.space)


@pytest.mark.parametrize(
    "recipe",
    [
        QueryRecipe(QUERY),
        QueryRecipe(QUERY, views=2),
        QueryRecipe(QUERY, "bct"),
        QueryRecipe("toys:backbone_with_dropout"),
    ],
)
def test_one_seed_trains_the_same_query_model_twice_and_another_another(
    gallery: Bundle, tmp_path: Path, recipe: QueryRecipe
) -> None:
    found = []
    for number, seed in enumerate((0, 0, 1)):
        torch.rand(number + 1)
        root = tmp_path / str(number)
        query_model(root, gallery, replace(SHORT, seed=seed), recipe)
        found.append(weights(root))
    assert found[0] == found[1]
    assert found[0] != found[2]


# -- stopped and continued ------------------------------------------------------------------------


@pytest.mark.parametrize("after", [2, 3, 7])
@pytest.mark.parametrize("backbone", [QUERY, "toys:backbone_with_dropout"])
def test_ctrl_c_saves_and_resume_goes_on_to_the_same_bits(
    gallery: Bundle, tmp_path: Path, after: int, backbone: str
) -> None:
    recipe = QueryRecipe(backbone, "bct", views=2)
    whole = query_model(tmp_path / "whole", gallery, recipe=recipe)
    stop = Tripwire("train", after, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted) as caught:
        query_model(tmp_path / "cut", gallery, recipe=recipe, reporter=stop)
    assert caught.value.exit_code == 130
    with pytest.raises(BundleError):
        Bundle.load(tmp_path / "cut")
    listener = Listener()
    again = query_model(tmp_path / "cut", gallery, recipe=recipe, resume=True, reporter=listener)
    assert weights(again.root) == weights(whole.root)
    assert history(again.root) == history(whole.root)
    assert again.manifest.files == whole.manifest.files
    assert "embed training pictures" not in listener.jobs, "the stored vectors are still there"


KILLED = """
import os, signal, sys
from pathlib import Path
from hetero.bundle import Bundle
from test_train import *
role, after, root, parent = sys.argv[1:]
kill = Tripwire("train", int(after), lambda: os.kill(os.getpid(), signal.SIGKILL))
if role == "gallery":
    gallery_model(Path(root), reporter=kill)
else:
    query_model(Path(root), Bundle.load(Path(parent)), recipe=DROPOUT, reporter=kill)
"""
DROPOUT = QueryRecipe("toys:backbone_with_dropout", "bct", views=2)


def test_a_run_killed_at_any_moment_and_resumed_ends_in_the_same_bits(
    gallery: Bundle, tmp_path: Path
) -> None:
    # In the second epoch, and in the first, of which nothing is saved yet.
    cases = {"gallery": 2, "query": 5}
    children = {}
    for role, after in cases.items():
        argv = [role, str(after), str(tmp_path / role)]
        here = [str(Path(__file__).parent), str(Path(hetero.__file__).parents[1])]
        children[role] = subprocess.Popen(
            [sys.executable, "-c", KILLED, *argv, str(gallery.root)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(here)},
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        for role, child in children.items():
            _, said = child.communicate(timeout=300)
            assert child.returncode == -signal.SIGKILL, said
            saved = tmp_path / role / "training" / "checkpoint.pt"
            assert saved.exists() == (role == "query")
    finally:
        for child in children.values():
            child.kill()
    again = gallery_model(tmp_path / "gallery", resume=True)
    assert weights(again.root) == weights(gallery.root)
    assert again.space == gallery.space
    whole = query_model(tmp_path / "whole", gallery, recipe=DROPOUT)
    listener = Listener()
    query_model(tmp_path / "query", gallery, recipe=DROPOUT, resume=True, reporter=listener)
    assert "going on at epoch 2, step 1" in listener.lines[0]
    assert weights(tmp_path / "query") == weights(whole.root)
    assert history(tmp_path / "query") == history(whole.root)


def test_a_run_that_died_before_its_bundle_was_written_only_writes_it(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "create", full)
        with pytest.raises(RuntimeError, match="power cut"):
            gallery_model(tmp_path)
    steps: list[int] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: steps.append(1))
    again = gallery_model(tmp_path, resume=True)
    assert not steps
    assert weights(again.root) == weights(gallery.root)
    assert again.space == gallery.space


@pytest.mark.parametrize("role", ["gallery", "query"])
def test_a_finished_bundle_is_reused_on_resume(gallery: Bundle, tmp_path: Path, role: str) -> None:
    def make(reporter: Reporter, **more: Any) -> Bundle:
        if role == "gallery":
            return gallery_model(tmp_path, reporter=reporter, **more)
        return query_model(tmp_path, gallery, reporter=reporter, **more)

    first = make(quiet())
    written = (tmp_path / "manifest.json").stat().st_mtime_ns
    listener = Listener()
    second = make(listener, resume=True)
    assert second.manifest == first.manifest
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == written
    assert listener.jobs == {}
    assert "is finished" in listener.lines[0]
    # The same weights would come out: whether to stop at chance does not bear on them.
    make(listener, resume=True, settings=replace(SHORT, keep_going=True))
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == written
    # Without --resume it is made anew.
    make(listener)
    assert (tmp_path / "manifest.json").stat().st_mtime_ns > written


def test_a_finished_bundle_of_other_settings_is_trained_anew(
    gallery: Bundle, tmp_path: Path
) -> None:
    query_model(tmp_path, gallery)
    changes: list[dict[str, Any]] = [
        {"settings": replace(SHORT, lr=1e-3)},
        {"recipe": QueryRecipe(QUERY, "bct")},
        {"recipe": QueryRecipe(QUERY, "regression", {"weight": 3.0})},
        {"images": toy_images(per_class=7)},
    ]
    for change in changes:
        listener = Listener()
        query_model(tmp_path, gallery, resume=True, reporter=listener, **change)
        assert "train query (" in " ".join(listener.jobs), change


def test_a_finished_bundle_that_was_damaged_is_trained_anew(tmp_path: Path) -> None:
    first = gallery_model(tmp_path)
    before = weights(tmp_path)
    path = first.path(first.artifact("weights"))
    path.write_bytes(path.read_bytes()[:-7])
    gallery_model(tmp_path, resume=True)
    assert weights(tmp_path) == before


def test_a_checkpoint_of_another_gallery_is_refused(gallery: Bundle, tmp_path: Path) -> None:
    other = gallery_model(tmp_path / "other", replace(SHORT, seed=1))
    stop = Tripwire("train", 5, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        query_model(tmp_path / "q", gallery, reporter=stop)
    with pytest.raises(ConfigError, match=r"another run, it differs in parent;"):
        query_model(tmp_path / "q", other, resume=True)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 1])
def test_training_needs_two_classes(gallery: Bundle, tmp_path: Path, classes: int) -> None:
    images = toy_images(train=classes)
    with pytest.raises(DataError, match=f"{classes} training classes of {classes + 6} in all"):
        gallery_model(tmp_path, images=images)
    with pytest.raises(DataError, match="training needs at least two"):
        query_model(tmp_path, gallery, images=images)


def test_training_needs_validation_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the val split has 0 queries"):
        gallery_model(tmp_path, images=toy_images(val=0))


def test_one_validation_class_is_enough(tmp_path: Path) -> None:
    # Everything is then a right answer, so chance is 1 and says nothing against the run.
    settings = Settings(epochs=6, batch=4)
    made = gallery_model(tmp_path, settings, images=toy_images(val=1))
    assert [row["score"] for row in history(made.root)] == [1.0] * 6


@pytest.mark.parametrize("role", ["gallery", "query"])
def test_a_batch_larger_than_the_training_set_is_refused(
    gallery: Bundle, tmp_path: Path, role: str
) -> None:
    settings = replace(SHORT, batch=49)
    train = {
        "gallery": lambda: gallery_model(tmp_path, settings),
        "query": lambda: query_model(tmp_path, gallery, settings),
    }[role]
    with pytest.raises(ConfigError, match="48 pictures do not fill one batch of 49"):
        train()


def test_a_method_that_needs_a_head_refuses_a_bundle_without_one(
    gallery: Bundle, tmp_path: Path
) -> None:
    headless = query_model(tmp_path / "headless", gallery)
    with pytest.raises(ConfigError, match="needs the gallery model's classifier"):
        query_model(tmp_path / "q", headless, recipe=QueryRecipe(QUERY, "bct"))
    # One that does not need it trains.
    assert query_model(tmp_path / "q", headless).space == gallery.space


def renamed(images: Images, change: Callable[[str], str]) -> Images:
    return dataclasses.replace(images, labels=tuple(change(label) for label in images.labels))


def test_a_head_that_knows_none_of_the_classes_is_refused(gallery: Bundle, tmp_path: Path) -> None:
    strange = renamed(toy_images(), lambda label: f"other-{label}")
    with pytest.raises(ConfigError, match="knows none of the 8 training classes"):
        query_model(tmp_path, gallery, images=strange, recipe=QueryRecipe(QUERY, "bct"))


def test_classes_that_the_head_does_not_know_are_marked(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = objective_of(monkeypatch)
    # Class 2 gets a name that sorts first, so that numbers and head rows no longer agree.
    some = renamed(toy_images(), lambda label: "a-new-one" if label == "class02" else label)
    query_model(tmp_path, gallery, images=some, recipe=QueryRecipe(QUERY, "bct"))
    (objective,) = handed
    assert objective.setup.head_labels.reshape(8, 6).tolist() == [
        [row if row != 2 else -1] * 6 for row in range(8)
    ]
    assert objective.labels.reshape(8, 6)[:, 0].tolist() == [1, 2, 0, 3, 4, 5, 6, 7]


# -- variants -------------------------------------------------------------------------------------


def test_a_users_own_method_trains_without_touching_the_package(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my_methods"
    folder.mkdir()
    (folder / "pull.py").write_text(
        '"""Squared distance.\n\nPaper: none\nDiffers: wholly\n"""\n'
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "import torch\nfrom torch import nn\n"
        "calls = []\n"
        "@dataclass(frozen=True)\nclass Method:\n"
        "    strength: float = 2.0\n    needs: ClassVar[frozenset[str]] = frozenset()\n"
        "    def own(self, setup):\n        return nn.Linear(setup.dim, setup.dim, bias=False)\n"
        "    def loss(self, step, own):\n"
        "        calls.append((self.strength, step.progress))\n"
        "        return self.strength * (own(step.query) - step.gallery).square().sum(1).mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = QueryRecipe(QUERY, "my_methods.pull", {"strength": "3"})
    query = query_model(tmp_path / "q", gallery, recipe=recipe)
    calls = sys.modules["my_methods.pull"].calls
    assert [s for s, _ in calls] == [3.0] * STEPS
    assert query.manifest.recipe["method"] == "my_methods.pull"
    assert query.manifest.recipe["method.strength"] == 3.0
    assert not any(name.startswith("own") for name in query.tensors("weights"))


@pytest.mark.parametrize("head", ["cosine", "arcface", "plain"])
def test_a_gallery_model_trains_with_each_head(tmp_path: Path, head: Any) -> None:
    made = gallery_model(tmp_path, recipe=replace(GALLERY_RECIPE, head=head))
    assert made.manifest.recipe["head"] == head
    losses = [row["loss"] for row in history(tmp_path)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["regression", "bct"])
def test_a_trained_query_model_finds_its_way_in_the_gallerys_index(
    tmp_path: Path, method: str
) -> None:
    images = toy_images(test=5)
    settings = Settings(epochs=10, batch=16, augment=MILD)
    shape = GalleryRecipe("resnet:width=8", dim=16)
    made = gallery_model(tmp_path / "g", settings, shape, images)
    settings = Settings(epochs=20, batch=8, lr=5e-3, augment=MILD, keep_going=True)
    recipe = QueryRecipe("mobilenet:width=0.25,depth=0.3,stride=1", method)
    query = query_model(tmp_path / "q", made, settings, recipe, images)
    job = evaluate.task(images, "test")
    pixels = images.pixels(job.rows, PREPROCESS)
    sides = [models.TorchEmbedder(b).embed(job.ids, pixels) for b in (query, made)]
    found = evaluate.scores(job.rank(*sides))
    # Classes that neither model was trained on; chance is 5 of 29.
    assert found.recall_at_1.value > 0.3
    assert found.map.value > 0.4
    if method == "regression":
        assert pairwise_cosine(*sides).mean() > 0.5


# -- what several runs share ----------------------------------------------------------------------


def test_vectors_kept_in_a_folder_are_embedded_once_for_two_runs(
    gallery: Bundle, tmp_path: Path
) -> None:
    kept, jobs = tmp_path / "vectors", []
    for name, method in (("a", "regression"), ("b", "raml")):
        listener = Listener()
        recipe = QueryRecipe(QUERY, method, views=2)
        query_model(tmp_path / name, gallery, recipe=recipe, vectors=kept, reporter=listener)
        jobs.append("embed training pictures" in listener.jobs)
    assert jobs == [True, False]
    (file,) = kept.iterdir()
    assert np.load(file).shape == (2, 48, 12)
    # Other views are other vectors.
    query_model(tmp_path / "c", gallery, recipe=replace(QUERY_RECIPE, views=1), vectors=kept)
    assert len(list(kept.iterdir())) == 2


def test_vectors_that_a_killed_run_left_half_written_are_written_over(
    gallery: Bundle, tmp_path: Path
) -> None:
    kept = tmp_path / "vectors"
    query_model(tmp_path / "a", gallery, vectors=kept)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    torn = file.rename(file.with_suffix(".part"))
    torn.write_bytes(whole[:-100])
    query_model(tmp_path / "b", gallery, vectors=kept)
    assert [p.name for p in kept.iterdir()] == [file.name]
    assert file.read_bytes() == whole


def test_a_run_waits_for_another_that_embeds_the_same_pictures(
    gallery: Bundle, tmp_path: Path
) -> None:
    kept, said, listener = tmp_path / "vectors", threading.Event(), Listener()
    query_model(tmp_path / "a", gallery, vectors=kept)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.unlink()
    listener.line = lambda text: said.set() if "another run embeds" in text else None  # type: ignore[method-assign]
    with file.with_suffix(".part").open("wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        run = threading.Thread(
            target=query_model, args=(tmp_path / "b", gallery),
            kwargs={"vectors": kept, "reporter": listener},
        )  # fmt: skip
        run.start()
        assert said.wait(60)
        part.write(whole)
        part.flush()
        file.with_suffix(".part").replace(file)
    run.join(60)
    assert not run.is_alive()
    assert "embed training pictures" not in listener.jobs
    assert [p.name for p in kept.iterdir()] == [file.name]


def test_blends_are_embedded_by_the_gallery_model_as_they_are_shown_to_the_query_model(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = objective_of(monkeypatch)
    settings = replace(SHORT, augment=replace(MILD, mix=1.0))
    query_model(tmp_path, gallery, settings, replace(QUERY_RECIPE, views=1))
    (objective,) = handed
    images, net, view = toy_images(), models.load(gallery), View(PREPROCESS)
    pixels, rows = images.pixels(images.rows("train"), PREPROCESS), torch.arange(48)
    shown = objective.draw(0, 48, torch.Generator(), settings.augment)
    with torch.no_grad():
        blended = net(view(gather(pixels, rows, shown), shown))
        plain = net(view(torch.from_numpy(pixels), shown))
    np.testing.assert_allclose(objective.setup.gallery[0], blended, atol=1e-4)
    assert not np.allclose(objective.setup.gallery[0], plain, atol=1e-2)


def test_blends_need_stored_views_and_are_nothing_for_a_gallery_model(
    gallery: Bundle, tmp_path: Path
) -> None:
    settings = replace(SHORT, augment=replace(MILD, mix=0.5))
    with pytest.raises(ConfigError, match="set views to at least 1"):
        query_model(tmp_path / "q", gallery, settings)
    with pytest.raises(ConfigError, match="blended pictures have none"):
        gallery_model(tmp_path / "g", settings)


def test_a_query_model_of_fewer_numbers_is_lifted_into_the_space(
    gallery: Bundle, tmp_path: Path
) -> None:
    made = query_model(tmp_path, gallery, recipe=replace(QUERY_RECIPE, dim=5))
    loaded = Bundle.load(made.root)
    net = models.load(loaded)
    assert (loaded.manifest.model.inner, loaded.manifest.model.dim, net.inner) == (5, 12, 5)
    probe = loaded.probe()
    vectors = models.embed_pixels(net, PREPROCESS, probe.pixels)
    assert vectors.shape[1] == 12
    assert np.array_equal(vectors, probe.vectors)
    # Before they are made unit vectors they lie in five directions and an offset.
    with torch.no_grad():
        lifted = net.projection(net.backbone(torch.randn(30, 3, 16, 16)))
    assert np.linalg.matrix_rank((lifted - lifted.mean(0)).numpy(), tol=1e-4) == 5


@pytest.mark.parametrize("method", ["vanilla_kd", "rkd", "pkt"])
def test_a_negative_control_runs_to_its_end_though_its_search_is_at_chance(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    at_chance = training.Check(0.1, 0.1, 0.5)
    monkeypatch.setattr(training, "score", lambda *_: at_chance)
    settings = Settings(epochs=6, batch=4)
    made = query_model(tmp_path / "q", gallery, settings, QueryRecipe(QUERY, method))
    assert len(history(made.root)) == 6
    with pytest.raises(TrainingError, match="search is at chance"):
        query_model(tmp_path / "other", gallery, settings)
