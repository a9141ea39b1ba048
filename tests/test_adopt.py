from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn
from toys import PREPROCESS, QUERY, quiet, toy_images

from hetero import models
from hetero.bundle import Bundle
from hetero.errors import ConfigError
from hetero.fit import Settings
from hetero.train import QueryRecipe, adopt_gallery, train_query


def ready() -> nn.Module:
    """A backbone that comes with weights: the same ones whenever it is built."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(
            nn.Conv2d(3, 20, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("adopted")
    bare = replace(toy_images(), labelled=False)
    return adopt_gallery(bare, "test_adopt:ready", 8, PREPROCESS, root, reporter=quiet())


def test_the_embedding_is_the_features_on_their_principal_axes(gallery: Bundle) -> None:
    images = toy_images()
    rows = images.rows("train")
    pixels = images.pixels(rows, PREPROCESS)
    with torch.no_grad():
        features = ready()(torch.from_numpy(PREPROCESS.tensor(pixels))).numpy()
    expected = PCA(8, svd_solver="full").fit(features).transform(features)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    made = models.embed_pixels(models.load(gallery), PREPROCESS, pixels)
    # An axis may point either way.
    signs = np.sign((made * expected).sum(0))
    np.testing.assert_allclose(made * signs, expected, atol=2e-4)


def test_adopting_twice_gives_the_same_space(gallery: Bundle, tmp_path: Path) -> None:
    again = adopt_gallery(
        toy_images(), "test_adopt:ready", 8, PREPROCESS, tmp_path, reporter=quiet()
    )
    assert again.space == gallery.space


def test_a_query_model_trains_into_an_adopted_space_without_labels(
    gallery: Bundle, tmp_path: Path
) -> None:
    made = train_query(
        gallery,
        replace(toy_images(), labelled=False),
        QueryRecipe(QUERY, "regression", views=1),
        Settings(epochs=2, batch=16, keep_going=True),
        tmp_path,
        reporter=quiet(),
    )
    assert made.space == gallery.space
    assert made.train_classes() == ()


@pytest.mark.parametrize("dim", [21, 48])
def test_more_axes_than_features_are_refused(tmp_path: Path, dim: int) -> None:
    with pytest.raises(ConfigError, match="use at most 20"):
        adopt_gallery(toy_images(), "test_adopt:ready", dim, PREPROCESS, tmp_path, reporter=quiet())
