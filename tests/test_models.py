from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import GALLERY, PREPROCESS, QUERY, SIZE

from hetero import _plugins, models
from hetero.bundle import Bundle, Model
from hetero.errors import BundleError, ConfigError
from hetero.models import EmbeddingNet, FromPixels
from hetero.preprocess import Preprocess
from hetero.space import Space

#: Of each family one to run, at a size that its smallest member takes.
SPECS = {
    "elastic": ("elastic:width=0.25", 16),
    "leaky": ("leaky:resnet:width=4", 16),
    "mobilenet": ("mobilenet:width=0.25,depth=0.3", 16),
    "resnet": ("resnet:width=4", 16),
    "shufflenet": ("shufflenet:width=0.2,last=16", 16),
    "timm": ("timm:mobilenetv3_small_050", 32),
    "torchvision": ("torchvision:mnasnet0_5", 32),
}
LIBRARIES = ("timm", "torchvision")

#: More members of our own families.
VARIANTS = (
    "mobilenet",
    "mobilenet:width=0.5,se=1",
    "mobilenet:width=0.5,act=hswish,stride=1",
    "mobilenet:depth=2",
    "elastic:depth=123,kernel=357357357,expand=234562345,size=16",
    "elastic:width=0.5,stride=1,se=1,act=hswish,last=64",
    "shufflenet:width=0.25,stem=2,ops=357x357x357x357x357x,inner=01234567890123456789",
    "leaky:slope=0.1,mobilenet:width=0.25,depth=0.3",
    "resnet:width=4,depth=18",
    "resnet:width=4,depth=34",
    "resnet:width=4,stem=large",
)


@pytest.fixture
def libraries(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Makes the library of a family importable, or skips."""

    def need(family: str) -> None:
        if family in LIBRARIES:
            request.getfixturevalue("timm")

    return need


def pixels(count: int = 5, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def a_net(spec: str = QUERY, dim: int = 6, size: int = SIZE) -> EmbeddingNet:
    """A net whose batch statistics are not those of a fresh one."""
    torch.manual_seed(0)
    net = models.build(spec, dim, size).train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 3, size, size))
    return net.eval()


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an importable module of a user's own, with backbones good and bad."""
    name = "my_backbones"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def tiny():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "def unpooled():\n    return nn.Conv2d(3, 4, 3)\n"
        "def wanting(width):\n    return nn.Identity()\n"
        "def number():\n    return 3\n"
        "def grey():\n    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())\n"
        "def failing():\n    return Silent()\n"
        "class Silent(nn.Module):\n    def forward(self, x):\n        raise ValueError\n"
        "constant = 5\n"
    )
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "inner.py").write_text((tmp_path / f"{name}.py").read_text())
    monkeypatch.syspath_prepend(tmp_path)
    for module in (name, "pack", "pack.inner"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.invalidate_caches()
    return name


# -- the contract of every family -----------------------------------------------------------------


def test_every_family_has_a_member_in_the_contract() -> None:
    assert set(SPECS) == set(_plugins.names("hetero.models"))


CONTRACT = [
    *((f, spec, size) for f, (spec, size) in SPECS.items()),
    *((spec.partition(":")[0], spec, 32) for spec in VARIANTS),
]


@pytest.mark.parametrize(("family", "spec", "size"), CONTRACT)
def test_a_family_gives_unit_rows_and_a_gradient_for_every_weight(
    family: str, spec: str, size: int, libraries: Callable[[str], None]
) -> None:
    libraries(family)
    torch.manual_seed(0)
    net = models.build(spec, 6, size)
    rows = net.eval()(torch.randn(3, 3, size, size))
    assert rows.shape == (3, 6)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    rows = net.train()(torch.randn(4, 3, size, size))
    (rows * torch.randn(4, 6)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("family", "spec", "size"), CONTRACT)
def test_a_family_treats_each_picture_of_a_batch_alone_in_evaluation(
    family: str, spec: str, size: int, libraries: Callable[[str], None]
) -> None:
    libraries(family)
    net = a_net(spec, size=size)
    batch = torch.randn(4, 3, size, size)
    with torch.no_grad():
        whole, single = net(batch), torch.cat([net(batch[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", sorted(SPECS))
def test_a_family_says_what_it_is_and_names_its_source(family: str) -> None:
    module = importlib.import_module(f"hetero.models.{family}")
    text = module.__doc__ or ""
    if family in LIBRARIES:
        assert "pretrained" in text
        assert "no result on those classes is an unseen-class result" in " ".join(text.split())
    else:
        assert "\nPaper: " in text
        assert "\nDiffers: " in text


@pytest.mark.parametrize("family", sorted(SPECS))
def test_one_seed_builds_the_same_weights(family: str, libraries: Callable[[str], None]) -> None:
    libraries(family)
    spec, size = SPECS[family]
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(models.arrays(models.build(spec, 4, size)))
    assert nets[0].keys() == nets[1].keys()
    assert all(np.array_equal(nets[0][k], nets[1][k]) for k in nets[0])


# -- pixels in ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preprocess",
    [
        PREPROCESS,
        Preprocess(SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        Preprocess(SIZE, mean=(0.1, 0.5, 0.9), std=(1.0, 0.1, 0.01)),
    ],
)
def test_pixels_inside_equal_the_reference_preprocessing_and_the_net(
    preprocess: Preprocess,
) -> None:
    net, some = a_net(), pixels()
    with torch.no_grad():
        inside = FromPixels(net, preprocess)(torch.from_numpy(some))
        outside = net(torch.from_numpy(preprocess.tensor(some)))
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-5)


def test_pixels_may_come_as_floats_from_0_to_255() -> None:
    whole, some = FromPixels(a_net(), PREPROCESS), torch.from_numpy(pixels())
    with torch.no_grad():
        assert torch.equal(whole(some), whole(some.float()))


def test_preprocessing_adds_nothing_to_the_weights() -> None:
    net = a_net()
    assert FromPixels(net, PREPROCESS).state_dict().keys() == {f"net.{k}" for k in net.state_dict()}


@pytest.mark.parametrize("batch", [1, 2, 5, 256])
def test_embedding_pixels_does_not_depend_on_the_batch(batch: int) -> None:
    net, some = a_net(), pixels()
    rows = models.embed_pixels(net, PREPROCESS, some, batch=batch)
    assert rows.shape == (5, 6)
    assert rows.dtype == np.float32
    with torch.no_grad():
        expected = net(torch.from_numpy(PREPROCESS.tensor(some))).numpy()
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)


def test_embedding_leaves_every_part_in_the_mode_it_was_in() -> None:
    net = a_net().train()
    net.backbone.eval()  # frozen statistics, as in fine-tuning
    before = {name: part.training for name, part in net.named_modules()}
    state = {k: v.clone() for k, v in net.state_dict().items()}
    in_training = models.embed_pixels(net, PREPROCESS, pixels())
    models.count(net, SIZE)
    assert {name: part.training for name, part in net.named_modules()} == before
    assert set(before.values()) == {True, False}
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    in_evaluation = models.embed_pixels(net.eval(), PREPROCESS, pixels())
    assert np.array_equal(in_training, in_evaluation)


def test_the_mode_is_put_back_after_a_failure_too() -> None:
    net = a_net().train()
    with pytest.raises((RuntimeError, TypeError)):
        models.embed_pixels(net, PREPROCESS, np.zeros((2, 1, 1, 7), np.uint8))
    assert net.training


# -- counting -------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """A convolution, a depthwise one, and a linear layer, whose costs are known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1, bias=True)
        self.two = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
        self.three = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(self.one(x)).mean((2, 3)))


def test_multiply_accumulates_and_parameters_equal_a_calculation_by_hand() -> None:
    size = 10
    convolution = 8 * 3 * 9 * size * size
    depthwise = 8 * 1 * 9 * (size // 2) ** 2
    linear = 8 * 5
    parameters = (8 * 3 * 9 + 8) + 8 * 9 + (8 * 5 + 5)
    assert models.count(Tiny(), size) == (parameters, convolution + depthwise + linear)


def test_the_embedding_layer_is_counted_too() -> None:
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parameters, macs = models.count(EmbeddingNet(backbone, 3, 4), 8)
    assert (parameters, macs) == (3 * 4 + 2 * 4, 3 * 4)


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (
            "mobilnet",
            "unknown model 'mobilnet'; there are elastic, leaky, mobilenet, resnet, shufflenet, "
            "timm, torchvision",
        ),
        ("mobilnet:width=2", "unknown model 'mobilnet'"),
        ("resnet:widht=4", r"'widht=4' is not one of its options; .* width=32, depth=10"),
        ("resnet:4", "'4' is not one of its options"),
        ("resnet:width=wide", "width needs a int, got 'wide'"),
        ("resnet:depth=11", "depth is one of 10, 18, 34"),
        ("resnet:width=0", "width at least 1"),
        ("elastic:depth=444", "depth needs 3 digits, each of 1, 2, 3; got '444'"),
        ("elastic:kernel=3", "kernel needs 9 digits, each of 3, 5, 7"),
        ("elastic:expand=999999999", "expand needs 9 digits"),
        ("elastic:stride=4", "stride 1 or 2"),
        ("shufflenet:ops=3", "ops needs 20 of 3, 5, 7, x"),
        ("shufflenet:inner=1", "inner needs 20 digits"),
        ("shufflenet:width=0.1", "width at least 0.2"),
        ("resnet:stem=huge", "stem small or large"),
        ("mobilenet:width=-1", "width and depth above 0"),
        ("mobilenet:width=nan", "width and depth above 0"),
        ("mobilenet:width=inf", "width and depth above 0"),
        ("mobilenet:depth=0", "width and depth above 0"),
        ("mobilenet:stride=3", "stride 1 or 2"),
        ("mobilenet:se=2", "se 0 or 1"),
        ("mobilenet:se=yes", "se needs a int"),
        ("mobilenet:act=gelu", "act is relu or hswish"),
        ("nowhere.at:all", r"cannot call nowhere\.at:all\(\)"),
        (
            "nowhere:all",
            r"cannot call nowhere:all\(\).*families here are elastic, leaky, mobilenet, resnet",
        ),
        (":all", "cannot call"),
        ("json:nothing_of_this_name", "cannot call json"),
        ("timm", "write timm:NAME"),
        ("timm:resnet18,weights=1", "write timm:NAME"),
        ("torchvision:resnet18,pretrained=1", "write torchvision:NAME"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_what_there_is(spec: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        models.build(spec, 4, SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_a_library_without_this_model_is_refused(
    family: str, libraries: Callable[[str], None]
) -> None:
    libraries(family)
    with pytest.raises(ConfigError, match=f"backbone {family}"):
        models.backbone(f"{family}:no_such_model_at_all")


def test_a_classifier_that_does_not_end_in_a_linear_layer_is_refused(
    libraries: Callable[[str], None],
) -> None:
    libraries("torchvision")
    with pytest.raises(ConfigError, match="no last linear layer"):
        models.backbone("torchvision:squeezenet1_1")


@pytest.mark.parametrize("dim", [-3, 0, 1])
def test_an_embedding_of_less_than_two_numbers_is_refused(dim: int) -> None:
    with pytest.raises(ConfigError, match="dim must be at least 2"):
        models.build(QUERY, dim, SIZE)


@pytest.mark.parametrize("where", ["my_backbones", "pack.inner"])
def test_a_users_own_backbone_works_without_touching_the_package(
    user_module: str, where: str
) -> None:
    net = models.build(f"{where}:tiny", 5, SIZE)
    assert type(net.backbone[0]) is nn.Conv2d
    rows = models.embed_pixels(net, PREPROCESS, pixels())
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        ("unpooled", r"has to give a \(n, features\) tensor, got \(2, 4, 14, 14\)"),
        ("wanting", "work without arguments"),
        ("number", "expected an nn.Module, got int"),
        ("constant", "cannot call"),
        ("missing", "cannot call"),
        ("grey", "cannot take pictures of 16x16"),
        ("failing", "cannot take pictures of 16x16: ValueError"),
    ],
)
def test_a_users_own_backbone_that_cannot_work_is_refused(
    user_module: str, function: str, match: str
) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        models.build(f"{user_module}:{function}", 5, SIZE)
    assert "\n" not in str(caught.value)


def test_a_library_says_how_its_pretrained_weights_want_their_pictures(
    libraries: Callable[[str], None],
) -> None:
    libraries("timm")
    known = models.pretrained_preprocess("timm:mobilenetv3_small_100")
    assert known is not None
    assert known.size_px == 224
    np.testing.assert_allclose(known.mean, (0.485, 0.456, 0.406))
    np.testing.assert_allclose(known.std, (0.229, 0.224, 0.225))


@pytest.mark.parametrize("spec", ["resnet:width=4", "my.own:function"])
def test_for_other_backbones_nothing_is_known_about_pretraining(spec: str) -> None:
    assert models.pretrained_preprocess(spec) is None


# -- bundles --------------------------------------------------------------------------------------


def a_bundle(
    root: Path, net: EmbeddingNet, spec: str = QUERY, *, dim: int = 6, missing: str = ""
) -> Bundle:
    some = {k: v for k, v in models.arrays(net).items() if k != missing}
    return Bundle.create(
        root,
        role="gallery",
        space=Space("toy", "a" * 64, dim),
        model=Model(backbone=spec, dim=dim, parameters=1, macs=1),
        preprocess=PREPROCESS,
        recipe={},
        tensors={"weights": some},
    )


def test_a_loaded_net_is_the_one_that_was_saved(tmp_path: Path) -> None:
    net = a_net()
    a_bundle(tmp_path, net)
    loaded = models.load(Bundle.load(tmp_path))
    assert not loaded.training
    assert loaded.state_dict().keys() == net.state_dict().keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name
        assert value.dtype == net.state_dict()[name].dtype
    assert np.array_equal(
        models.embed_pixels(loaded, PREPROCESS, pixels()),
        models.embed_pixels(net, PREPROCESS, pixels()),
    )


def test_a_bundle_is_an_embedder_of_its_space(tmp_path: Path) -> None:
    net = a_net()
    embedder = models.TorchEmbedder(a_bundle(tmp_path, net))
    made = embedder.embed(["a", "b", "c", "d", "e"], pixels())
    assert made.space.same_as(embedder.space)
    assert made.made_by == embedder.name == f"gallery model {QUERY} in PyTorch"
    np.testing.assert_allclose(
        made.vectors, models.embed_pixels(net, PREPROCESS, pixels()), atol=1e-6
    )


@pytest.mark.parametrize("spec", [GALLERY, "mobilenet:width=0.5,depth=0.3"])
def test_weights_that_do_not_fit_the_named_backbone_are_refused(tmp_path: Path, spec: str) -> None:
    with pytest.raises(BundleError, match="do not fit backbone") as caught:
        models.load(a_bundle(tmp_path, a_net(), spec))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_weights_of_another_dimension_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="do not fit backbone"):
        models.load(a_bundle(tmp_path, a_net(dim=6), dim=7))


def test_weights_with_a_tensor_missing_are_refused(tmp_path: Path) -> None:
    name = "projection.0.weight"
    with pytest.raises(BundleError, match=name):
        models.load(a_bundle(tmp_path, a_net(), missing=name))


def test_saved_arrays_do_not_follow_later_training() -> None:
    net = a_net()
    before = models.arrays(net)
    copy = {k: v.copy() for k, v in before.items()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert all(np.array_equal(before[k], copy[k]) for k in before)


def test_loading_a_bundle_asks_no_library_for_its_pretrained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libraries: Callable[[str], None]
) -> None:
    libraries("timm")
    timm = importlib.import_module("timm")
    spec, size = SPECS["timm"]
    bundle = a_bundle(tmp_path, a_net(spec, size=size), f"{spec},pretrained=1")
    asked: list[bool] = []
    original = timm.create_model

    def create(name: str, pretrained: bool = False, **more: object) -> nn.Module:
        asked.append(pretrained)
        return original(name, pretrained=False, **more)

    monkeypatch.setattr(timm, "create_model", create)
    models.build(f"{spec},pretrained=1", 6, size)
    models.load(bundle)
    assert asked == [True, False]
