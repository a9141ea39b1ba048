from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_train import SHORT, gallery_model, query_model
from toys import QUERY, picture

from hetero import evaluate
from hetero.bundle import Bundle
from hetero.data import Images, unlabelled
from hetero.errors import ConfigError, DataError
from hetero.space import Embeddings
from hetero.train import QueryRecipe


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gallery_model(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures, some of them deeper."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "deep" / "er").mkdir(parents=True)
    for number in range(40):
        where = root / "deep" / "er" if number % 3 == 0 else root
        Image.fromarray(picture(number % 16, number)).save(where / f"{number:02}.png")
    return root


@pytest.fixture
def images(folder: Path) -> Images:
    return unlabelled.source(str(folder))


def test_nine_in_ten_pictures_are_for_training_and_none_for_testing(images: Images) -> None:
    assert len(images.ids) == 40
    assert not images.labelled
    assert len(set(images.labels)) == 40
    assert sorted(images.splits) == ["train"] * 36 + ["val"] * 4
    assert "deep/er/00.png" in images.ids


def test_the_split_is_by_path_and_seed(folder: Path, images: Images) -> None:
    assert unlabelled.source(str(folder)).splits == images.splits
    assert unlabelled.source(str(folder), seed=1).splits != images.splits


def test_a_querys_one_right_answer_is_the_very_same_picture(images: Images) -> None:
    job = evaluate.task(images, "val")
    space = gallery_space(len(job.ids))
    rows = np.eye(len(job.ids), dtype=np.float32)
    ours = Embeddings.normalised(space, job.ids, rows, "query")
    assert evaluate.scores(job.rank(ours, ours)).recall_at_1.value == 1.0
    turned = Embeddings.normalised(space, job.ids, np.roll(rows, 1, axis=0), "gallery")
    assert evaluate.scores(job.rank(ours, turned)).recall_at_1.value == 0.0


def gallery_space(dim: int):  # type: ignore[no-untyped-def]
    from hetero.space import Space

    return Space("toy", "0" * 64, dim)


@pytest.mark.parametrize("method", ["regression", "csd+regression"])
def test_a_folder_and_a_gallery_bundle_are_enough_to_train(
    gallery: Bundle, images: Images, tmp_path: Path, method: str
) -> None:
    settings = {"csd.neighbours": 8} if "csd" in method else None
    recipe = QueryRecipe(QUERY, method, settings)
    made = query_model(tmp_path, gallery, recipe=recipe, images=images)
    assert made.space == gallery.space
    assert made.train_classes() == ()
    assert made.manifest.data["train_pictures"] == 36
    assert made.manifest.recipe["method"] == method


def test_a_method_that_needs_labels_is_refused(
    gallery: Bundle, images: Images, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"bct needs labels, .* has none; use a label-free"):
        query_model(tmp_path, gallery, recipe=QueryRecipe(QUERY, "bct"), images=images)


def test_a_gallery_model_is_not_trained_without_labels(images: Images, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no labels; a gallery model is trained by class"):
        gallery_model(tmp_path, replace(SHORT, epochs=1), images=images)


@pytest.mark.parametrize(
    ("where", "match"), [("", "no path"), ("nowhere/at/all", "no such folder")]
)
def test_a_folder_that_is_not_there_is_refused(where: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        unlabelled.source(where)


def test_three_pictures_are_too_few(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(picture(0, number)).save(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match="3 files; training needs at least four"):
        unlabelled.source(str(tmp_path))
