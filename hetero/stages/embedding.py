"""Stage: the vectors of a collection, by a bundle's model in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from hetero import data
from hetero.bundle import Bundle
from hetero.data import Images, Split
from hetero.embedder import Embedder
from hetero.errors import ConfigError, DataError, need
from hetero.progress import Reporter
from hetero.space import Embeddings


def source_of(spec: str, bundle: Bundle | None = None) -> str:
    """What was named, or, where nothing was, what a bundle was trained on.

    Raises:
        ConfigError: Neither is there.
    """
    if not spec and bundle is not None:
        spec = str(bundle.manifest.data.get("source", ""))
    if not spec:
        raise ConfigError("name a collection of pictures with --data")
    return spec


def load_images(spec: str, bundle: Bundle | None = None) -> Images:
    """The collection of this name, or, for an empty one, that a bundle was trained on.

    Whoever asks embeds them next. Reading them can take long, so PyTorch is asked for first.

    Raises:
        MissingExtraError: It is not installed.
    """
    need("train")
    return data.load(source_of(spec, bundle))


def embed(
    bundle: Bundle, ids: Sequence[str], pixels: UInt8[np.ndarray, "n s s 3"], reporter: Reporter
) -> Embeddings:
    """The bundle's PyTorch vectors of pictures at its input size."""
    from hetero import models

    embedder: Embedder = models.TorchEmbedder(bundle)
    parts: list[Embeddings] = []
    with reporter.bar(f"embed with the {bundle.role} model", len(ids)) as bar:
        for at in range(0, len(ids), 256):
            parts.append(embedder.embed(ids[at : at + 256], pixels[at : at + 256]))
            bar.advance(len(parts[-1]))
    vectors = np.concatenate([p.vectors for p in parts])
    return Embeddings(embedder.space, tuple(ids), vectors, embedder.name)


def embed_split(
    bundle: Bundle, images: Images, split: Split | None, output: Path, reporter: Reporter
) -> Embeddings:
    """The vectors of a split (or of everything), written to a safetensors file."""
    rows = images.rows(split) if split else tuple(range(len(images)))
    if not rows:
        raise DataError(f"{images.name}: the {split} split is empty")
    pixels = images.pixels(rows, bundle.preprocess)
    made = embed(bundle, [images.ids[r] for r in rows], pixels, reporter)
    made.save(output)
    return made
