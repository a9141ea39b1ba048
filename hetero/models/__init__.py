"""Models: a backbone, a linear embedding layer, L2 normalisation in the graph.

A backbone family is a module of this folder with ``build(options: str) -> nn.Module``; the command
line names it as ``FAMILY`` or ``FAMILY:OPTIONS``: ``resnet:width=32,depth=10``, ``timm:NAME``.
Anything else is ``package.module:function``, a user's own function that returns an ``nn.Module``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from hetero import _plugins
from hetero.bundle import Bundle, FittedMap, Model
from hetero.errors import BundleError, ConfigError
from hetero.preprocess import Preprocess
from hetero.space import Embeddings, Space

N = TypeVar("N", bound=nn.Module)


class EmbeddingNet(nn.Module):
    """Pictures to unit vectors: backbone, linear layer with batch norm, L2.

    Args:
        backbone: Maps (n, 3, h, w) to (n, features).
        features: Number of features it gives.
        dim: Length of the embedding.
        inner: If not 0, what the backbone gives is squeezed to this many numbers and lifted to
            `dim` by one linear layer: these many are all that a device has to send.
    """

    #: The map behind the embedding, of a model that was brought into another space.
    fitted: FittedMap | None = None

    def __init__(self, backbone: nn.Module, features: int, dim: int, inner: int = 0) -> None:
        """See the class."""
        super().__init__()
        self.dim, self.inner = dim, inner
        self.backbone = backbone
        # Batch norm before L2 keeps any one direction from dominating; exporters fold it away.
        own = inner or dim
        layers = [nn.Linear(features, own, bias=False), nn.BatchNorm1d(own)]
        lift = [nn.Linear(inner, dim)] if inner else []
        self.projection = nn.Sequential(*layers, *lift)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Unit rows, shape (n, dim), for normalised pictures."""
        return nn.functional.normalize(self.projection(self.backbone(images)), dim=1)


class ClassifierNet(nn.Module):
    """Pictures to logits: backbone and linear layer.

    Args:
        backbone: Maps (n, 3, h, w) to (n, features).
        features: Number of features it gives.
        classes: Number of logits.
    """

    #: As `EmbeddingNet` has them: nothing is lifted, and no map follows.
    inner: int = 0
    fitted: FittedMap | None = None

    def __init__(self, backbone: nn.Module, features: int, classes: int) -> None:
        """See the class."""
        super().__init__()
        self.dim = classes
        self.backbone = backbone
        self.head = nn.Linear(features, classes)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c"]:
        """Logits, shape (n, classes), for normalised pictures."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


class FromPixels(nn.Module):
    """A net that takes pixels: uint8 (n, h, w, 3) RGB in, its rows out, normalisation inside."""

    scale: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, preprocess: Preprocess) -> None:
        """See the class."""
        super().__init__()
        self.net = net
        mean, std = torch.tensor([preprocess.mean, preprocess.std], dtype=torch.float32)
        # (x/255 - mean)/std as one multiply and one add, so that it costs two operations anywhere;
        # said once for each pixel of a line, since runtimes loop over what is repeated, and over
        # three numbers that is ten times as slow as over a line.
        width = preprocess.size_px
        for name, three in (("scale", 1 / (255 * std)), ("shift", -mean / std)):
            line = three.repeat(width).reshape(1, 1, width, 3)
            self.register_buffer(name, line, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit rows for uint8 (or float 0..255) NHWC pictures."""
        nhwc = pixels.to(torch.float32) * self.scale + self.shift
        rows: Tensor = self.net(nhwc.permute(0, 3, 1, 2))
        return rows


def options(text: str, defaults: Mapping[str, int | float | str], family: str) -> dict[str, str]:
    """The ``key=value,key=value`` part of a backbone's name, over its defaults.

    Raises:
        ConfigError: A key that the family does not have, or a value of the wrong kind.
    """
    chosen = {k: str(v) for k, v in defaults.items()}
    for part in filter(None, text.split(",")):
        key, sign, value = part.partition("=")
        if not sign or key not in defaults:
            raise ConfigError(
                f"backbone {family}: {part!r} is not one of its options; write {family}:KEY=VALUE "
                f"with {', '.join(f'{k}={v}' for k, v in defaults.items())}"
            )
        try:
            type(defaults[key])(value)
        except ValueError:
            raise ConfigError(
                f"backbone {family}: {key} needs a {type(defaults[key]).__name__}, got {value!r}"
            ) from None
        chosen[key] = value
    return chosen


def first_line(error: Exception) -> str:
    """What a library complains of, without its advice: one line, never empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def backbone(spec: str) -> nn.Module:
    """The backbone that a command line names, with fresh (or a library's pretrained) weights.

    Args:
        spec: ``FAMILY[:OPTIONS]`` or ``package.module:function``.

    Raises:
        ConfigError: Unknown family, options or function.
    """
    family, _, rest = spec.partition(":")
    # A bare name with options can only be meant as a family, so that a typing error lists those.
    if family in _plugins.names(__name__) or not ("." in family or rest.isidentifier()):
        built: object = _plugins.load(__name__, family).build(rest)
    else:
        try:
            built = getattr(_plugins.own(family), rest)()
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"backbone {spec!r}: cannot call {family}:{rest}() ({error}); "
                "it has to be in the working folder or on PYTHONPATH, and to work without "
                "arguments; the families here are "
                f"{', '.join(_plugins.names(__name__))}"
            ) from error
    if not isinstance(built, nn.Module):
        raise ConfigError(f"backbone {spec!r}: expected an nn.Module, got {type(built).__name__}")
    return built


def build(spec: str, dim: int, size_px: int = 32, inner: int = 0) -> EmbeddingNet:
    """A net with this backbone and an embedding of `dim` numbers.

    Args:
        spec: See `backbone`.
        dim: Length of the embedding, at least 2.
        size_px: Input side, used to find out how many features the backbone gives.
        inner: See `EmbeddingNet`; 0 for none.

    Raises:
        ConfigError: Unknown backbone, or it does not map (n, 3, s, s) to (n, features).
    """
    if dim < 2 or inner < 0 or inner == 1:
        raise ConfigError(f"dim must be at least 2, got {inner if dim >= 2 else dim}")
    trunk, features = _trunk(spec, size_px)
    return EmbeddingNet(trunk, features, dim, inner)


def classifier(spec: str, classes: int, size_px: int = 32) -> ClassifierNet:
    """A net with this backbone and a logit for each of `classes` classes, at least 2.

    Args:
        spec: See `backbone`.
        classes: How many.
        size_px: See `build`.

    Raises:
        ConfigError: See `build`.
    """
    if classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes, got {classes}")
    trunk, features = _trunk(spec, size_px)
    return ClassifierNet(trunk, features, classes)


def _trunk(spec: str, size_px: int) -> tuple[nn.Module, int]:
    """A backbone, and how many features it gives for pictures of this size."""
    trunk = backbone(spec).eval()
    try:
        with torch.no_grad():
            out = trunk(torch.zeros(2, 3, size_px, size_px))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"backbone {spec!r} cannot take pictures of {size_px}x{size_px}: {first_line(error)}"
        ) from error
    if not isinstance(out, Tensor) or out.ndim != 2:
        raise ConfigError(
            f"backbone {spec!r} has to give a (n, features) tensor, got "
            f"{tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__}; "
            "remove its classifier and pool its feature map"
        )
    return trunk, int(out.shape[1])


def load(bundle: Bundle) -> EmbeddingNet:
    """An embedding bundle's net with its weights, in evaluation mode.

    Raises:
        BundleError: The weights do not fit the architecture the manifest names.
        ConfigError: It is a classifier.
    """
    net = load_any(bundle)
    if not isinstance(net, EmbeddingNet):
        raise ConfigError(f"{bundle.root}: a classifier gives logits, no vectors to search by")
    return net


def load_any(bundle: Bundle) -> EmbeddingNet | ClassifierNet:
    """A bundle's net with its weights, in evaluation mode, whether it embeds or classifies.

    Raises:
        BundleError: The weights do not fit the architecture the manifest names.
    """
    model = bundle.manifest.model
    if bundle.role == "classifier":
        spec = architecture(model.backbone)
        return _filled(classifier(spec, model.dim, bundle.preprocess.size_px), bundle)
    own = model.map.dim if model.map else model.dim
    net = build(architecture(model.backbone), own, bundle.preprocess.size_px, inner=model.inner)
    if model.map:
        from hetero.models._mapped import MappedNet

        net = MappedNet(net, model.map, model.dim)
    return _filled(net, bundle)


def _filled(net: N, bundle: Bundle) -> N:
    """The net with the bundle's weights, in evaluation mode."""
    arrays = bundle.tensors("weights")
    try:
        net.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in arrays.items()})
    except RuntimeError as error:
        raise BundleError(
            f"{bundle.root}: the weights do not fit backbone "
            f"{bundle.manifest.model.backbone!r}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return net.eval()


def as_it_is(
    root: Path,
    net: EmbeddingNet,
    backbone: str,
    space: Space,
    preprocess: Preprocess,
    pixels: UInt8[np.ndarray, "n s s 3"],
) -> Bundle:
    """A query bundle of a net that was trained nowhere, for what can be learnt of its files.

    Args:
        root: Its folder.
        net: In evaluation mode.
        backbone: Its backbone's name.
        space: Of its own.
        preprocess: Of its pictures.
        pixels: The probe.
    """
    parameters, macs = count(net, preprocess.size_px)
    ids = "\n".join(f"picture {i}" for i in range(len(pixels))).encode()
    return Bundle.create(
        root,
        role="query",
        space=space,
        model=Model(backbone=backbone, dim=space.dim, parameters=parameters, macs=macs),
        preprocess=preprocess,
        recipe={},
        tensors={
            "weights": arrays(net),
            "probe": {
                "ids": np.frombuffer(ids, np.uint8),
                "pixels": pixels,
                "vectors": embed_pixels(net, preprocess, pixels),
            },
        },
    )


def architecture(spec: str) -> str:
    """A backbone's name without a wish for pretrained weights: a bundle brings its own."""
    family, _, rest = spec.partition(":")
    if family not in _plugins.names(__name__):
        return spec
    bare = getattr(_plugins.load(__name__, family), "architecture", None)
    return f"{family}:{bare(rest)}" if bare else spec


def arrays(net: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """A net's parameters and buffers as arrays that no later training step changes."""
    return {k: v.detach().cpu().numpy().copy() for k, v in net.state_dict().items()}


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every part is in the mode it was in."""
    modes = [(part, part.training) for part in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def embed_pixels(
    net: nn.Module,
    preprocess: Preprocess,
    pixels: UInt8[np.ndarray, "n s s 3"],
    batch: int = 256,
) -> Float32[np.ndarray, "n d"]:
    """The net's rows for pictures at its input size, in evaluation mode, on the net's device.

    Unit rows of an embedding net, logits of a classifier.
    """
    device = next(net.parameters()).device
    whole = FromPixels(net, preprocess).to(device)
    with _evaluating(net):
        rows = [
            whole(torch.from_numpy(np.ascontiguousarray(pixels[i : i + batch])).to(device))
            for i in range(0, len(pixels), batch)
        ]
    return torch.cat(rows).float().cpu().numpy()


class TorchEmbedder:
    """A bundle's net in PyTorch: the `hetero.embedder.Embedder` that all others are held to.

    Of a classifier the rows are logits scaled to length 1: the order of classes stays.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Load the bundle's weights."""
        self._net, self._preprocess = load_any(bundle), bundle.preprocess
        self.space = bundle.space
        self.name = f"{bundle.role} model {bundle.manifest.model.backbone} in PyTorch"

    def embed(self, ids: Sequence[str], pixels: UInt8[np.ndarray, "n s s 3"]) -> Embeddings:
        """See `hetero.embedder.Embedder.embed`."""
        rows = embed_pixels(self._net, self._preprocess, pixels)
        return Embeddings.normalised(self.space, ids, rows, self.name)


def count(net: nn.Module, size_px: int) -> tuple[int, int]:
    """Parameters, and multiply-accumulates for one picture of this size.

    Counted by PyTorch's own operation counter: convolutions and matrix products, two operations
    to a multiply-accumulate.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = next(net.parameters()).device
    with _evaluating(net), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, size_px, size_px, device=device))
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2


def pretrained_preprocess(spec: str) -> Preprocess | None:
    """How a library's pretrained weights want their pictures, or None where nothing is known."""
    family, _, rest = spec.partition(":")
    if family not in _plugins.names(__name__):
        return None
    known = getattr(_plugins.load(__name__, family), "preprocess", None)
    return known(rest) if known else None
