from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import SHORT, gallery_model
from toys import PREPROCESS, SIZE, Tripwire, quiet, toy_images, weights

from hetero import models
from hetero.bundle import Bundle
from hetero.errors import ConfigError, Interrupted
from hetero.models._nested import Nested, with_width
from hetero.train import QueryRecipe, train_widths

WIDTHS = (0.25, 0.5, 1.0)
SPEC = "mobilenet:depth=0.3"


def nested(widths: tuple[float, ...] = WIDTHS) -> Nested:
    torch.manual_seed(0)
    return Nested([models.build(with_width(SPEC, w), 6, SIZE) for w in widths])


def pictures(count: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def trained() -> Nested:
    net = nested().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for step in range(3):
        optimizer.zero_grad()
        sum(net(pictures(seed=step), at)[:, 0].sum() for at in range(3)).backward()  # type: ignore[union-attr]
        optimizer.step()
    return net


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_width_taken_out_gives_the_same_bits_as_inside(at: int) -> None:
    for net in (nested(), trained()):
        alone = net.eval().extract(at).eval()
        with torch.no_grad():
            assert torch.equal(net(pictures(), at), alone(pictures()))


def test_a_width_taken_out_is_an_ordinary_net_of_that_width() -> None:
    net = trained()
    for at, width in enumerate(WIDTHS):
        ordinary, alone = models.build(with_width(SPEC, width), 6, SIZE), net.extract(at)
        assert {k: v.shape for k, v in ordinary.state_dict().items()} == {
            k: v.shape for k, v in alone.state_dict().items()
        }
        ordinary.load_state_dict(alone.state_dict())
        assert models.count(ordinary, SIZE) == models.count(alone, SIZE)


def test_a_narrow_nets_gradient_reaches_the_leading_slices_of_the_widest_and_no_more() -> None:
    net = nested().train()
    net(pictures(), 0)[:, 0].sum().backward()
    narrow = dict(net.extract(0).named_parameters())
    reached = 0
    for name, whole in net.nets[-1].named_parameters():
        if whole.ndim == 1:
            assert whole.grad is None, "batch norms are each net's own"
            continue
        assert whole.grad is not None
        inside = tuple(slice(s) for s in narrow[name].shape)
        reached += bool(whole.grad[inside].any())
        outside = whole.grad.clone()
        outside[inside] = 0
        assert not outside.any()
    assert reached > 5


def test_widths_of_other_layers_cannot_share_weights() -> None:
    nets = [models.build(f"resnet:width=4,depth={d}", 6, SIZE) for d in (10, 18)]
    with pytest.raises(ConfigError, match="other layers at another width"):
        Nested(nets)


def test_widths_in_descending_order_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot share weights"):
        nested((0.5, 0.25))


def test_each_step_trains_the_narrowest_the_widest_and_one_between() -> None:
    torch.manual_seed(0)
    four = nested((0.25, 0.5, 0.75, 1.0))
    drawn = [four.sandwich() for _ in range(40)]
    assert {(first, last) for first, _, last in drawn} == {(0, 3)}
    assert {middle for _, middle, _ in drawn} == {1, 2}
    assert nested((0.25, 0.5)).sandwich() == [0, 1]


def test_a_width_replaces_the_one_in_the_name() -> None:
    assert with_width("mobilenet:depth=2,width=3", 0.5) == "mobilenet:width=0.5,depth=2"
    assert with_width("mobilenet", 0.25) == "mobilenet:width=0.25"
    with pytest.raises(ConfigError, match="only families with an option width"):
        with_width("toys:backbone_with_dropout", 0.5)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gallery_model(tmp_path_factory.mktemp("gallery"))


def widths_of(root: Path, gallery: Bundle, *widths: float, **more: Any) -> tuple[Bundle, ...]:
    more.setdefault("reporter", quiet())
    recipe = QueryRecipe(SPEC, views=1)
    return train_widths(gallery, toy_images(), recipe, widths, SHORT, root, **more)


def test_each_width_is_a_bundle_of_its_own_and_an_interrupted_run_goes_on_to_the_same_bits(
    gallery: Bundle, tmp_path: Path
) -> None:
    made = widths_of(tmp_path / "a", gallery, 0.5, 0.25, 1.0)
    assert [b.root.name for b in made] == ["width-0.25", "width-0.5", "width-1"]
    macs = []
    for bundle, width in zip(made, WIDTHS, strict=True):
        loaded = Bundle.load(bundle.root)
        model, probe = loaded.manifest.model, loaded.probe()
        assert model.backbone == with_width(SPEC, width)
        assert loaded.space == gallery.space
        ordinary = models.build(model.backbone, 12, SIZE)
        assert (model.parameters, model.macs) == models.count(ordinary, SIZE)
        vectors = models.embed_pixels(models.load(loaded), PREPROCESS, probe.pixels)
        # Loaded weights lie in memory otherwise than trained ones; not every processor sums alike.
        np.testing.assert_allclose(vectors, probe.vectors, atol=1e-6)
        macs.append(model.macs)
    assert macs == sorted(set(macs))
    # In another order, and cut after the fourth of nine steps.
    stop = Tripwire("train", 4, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        widths_of(tmp_path / "b", gallery, 1.0, 0.25, 0.5, reporter=stop)
    again = widths_of(tmp_path / "b", gallery, 0.25, 0.5, 1.0, resume=True)
    assert [weights(b.root) for b in again] == [weights(b.root) for b in made]


def test_one_width_is_no_choice(gallery: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two different ones"):
        widths_of(tmp_path, gallery, 0.5, 0.5)
