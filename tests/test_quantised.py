"""Training as the model will run in int8, and what is rounded there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", exc_type=ImportError)

import toys  # noqa: E402
from torch import nn  # noqa: E402

from hetero import models  # noqa: E402
from hetero.errors import ConfigError  # noqa: E402
from hetero.fit import Settings  # noqa: E402
from hetero.models._quantised import Quantised  # noqa: E402
from hetero.train import GalleryRecipe, QueryRecipe, train_gallery, train_query  # noqa: E402


def example(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    made = models.build("mobilenet:width=0.25,depth=0.3", 8, 16)
    for _ in range(5):
        made.train()(example(16))
    return made.eval()


def rounded_rows(weights: np.ndarray) -> np.ndarray:
    """By hand: each output channel's largest weight is 63 steps."""
    flat = weights.reshape(len(weights), -1)
    step = np.abs(flat).max(axis=1, keepdims=True) / 63
    return (np.round(flat / step) * step).reshape(weights.shape)


def test_weights_are_rounded_per_output_channel_as_int8_files_round_them() -> None:
    plain = net()
    weights = plain.backbone[0].weight.detach().numpy().copy()
    rounded = Quantised(plain, example())
    rounded.train()(example())
    np.testing.assert_allclose(
        plain.backbone[0].weight.detach().numpy(), rounded_rows(weights), atol=1e-6
    )


def test_rounding_weights_before_or_after_batch_norm_is_folded_in_is_the_same() -> None:
    weights = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    scale = np.array([0.1, 3, 7, 0.01, 1], np.float32).reshape(5, 1, 1, 1)
    np.testing.assert_allclose(rounded_rows(weights * scale), rounded_rows(weights) * scale, 1e-5)


def test_a_layers_input_takes_at_most_256_values() -> None:
    seen: list[torch.Tensor] = []
    plain = net()
    rounded = Quantised(plain, example())
    plain.projection[0].register_forward_hook(lambda part, given, out: seen.append(given[0]))
    rounded.train()(example(64))
    assert seen[0].numel() > 512
    assert len(seen[0].unique()) <= 256


def test_a_batch_norm_behind_which_a_relu_runs_is_not_rounded_itself() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
    )
    rounded = Quantised(plain, example())
    # Two inputs of convolutions, and the output of the second batch norm.
    assert len(rounded.rounding) == 3


def test_batch_norms_keep_the_statistics_of_the_float_phase() -> None:
    plain = net()
    before = plain.backbone[1].running_mean.clone()
    rounded = Quantised(plain, example())
    rounded.train()(example(16) + 3)
    assert torch.equal(plain.backbone[1].running_mean, before)


def test_ranges_are_learnt_in_training_and_stand_still_in_evaluation() -> None:
    rounded = Quantised(net(), example())
    rounded.train()(example())
    with torch.no_grad():
        first = rounded.eval()(example())
        rounded.eval()(100 * example())
        again = rounded.eval()(example())
    assert torch.equal(first, again)


def test_released_the_net_is_as_it_was_but_for_what_training_changed() -> None:
    plain = net()
    names, before = list(plain.state_dict()), plain(example())
    rounded = Quantised(plain, example())
    assert not torch.allclose(rounded.train()(example()), before, atol=1e-5)
    released = rounded.release()
    assert list(released.state_dict()) == names
    torch.testing.assert_close(released.eval()(example()), before)


def test_gradients_pass_through_the_rounding() -> None:
    plain = net()
    rounded = Quantised(plain, example())
    rounded.train()(example())[:, 0].sum().backward()
    grads = [p.grad for p in plain.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
    assert sum(float(g.abs().sum()) for g in grads) > 0


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory):
    images = toys.toy_images()
    settings = Settings(epochs=3, batch=16, keep_going=True)
    return images, train_gallery(
        images,
        GalleryRecipe(toys.GALLERY, 8),
        toys.PREPROCESS,
        settings,
        tmp_path_factory.mktemp("g"),
        reporter=toys.Reporter(quiet=True),
    )


def recipe(qat: int) -> QueryRecipe:
    return QueryRecipe(toys.QUERY, "regression", views=2, qat=qat)


def trained(gallery, root: Path, qat: int, **more):
    images, parent = gallery
    settings = Settings(epochs=3, batch=16, keep_going=True)
    reporter = toys.Reporter(quiet=True)
    return train_query(parent, images, recipe(qat), settings, root, reporter=reporter, **more)


def test_the_last_epochs_train_on_from_the_float_phase_and_the_bundle_is_plain(
    gallery, tmp_path: Path
) -> None:
    plain = trained(gallery, tmp_path / "plain", 0)
    made = trained(gallery, tmp_path / "qat", 2)
    a, b = plain.tensors("weights"), made.tensors("weights")
    assert set(a) == set(b)
    mean = next(k for k in a if k.endswith("running_mean"))
    np.testing.assert_array_equal(a[mean], b[mean])
    assert any(not np.array_equal(a[k], b[k]) for k in a)
    assert made.manifest.recipe["qat"] == 2
    assert not list((tmp_path / "qat").rglob("checkpoint.pt"))


def test_stopped_in_the_last_epochs_it_goes_on_to_the_same_bits(
    gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hetero import fit as loop

    whole = trained(gallery, tmp_path / "whole", 2).digest
    real, calls = loop._watch, []

    def dies(what: str, *rest) -> None:
        calls.append(what)
        if len(calls) == 5:  # after the second of the last two epochs, before it is saved
            raise KeyboardInterrupt
        real(what, *rest)

    monkeypatch.setattr(loop, "_watch", dies)
    with pytest.raises(KeyboardInterrupt):
        trained(gallery, tmp_path / "cut", 2)
    monkeypatch.undo()
    assert trained(gallery, tmp_path / "cut", 2, resume=True).digest == whole


def test_a_number_of_epochs_below_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="epochs"):
        recipe(-1)
