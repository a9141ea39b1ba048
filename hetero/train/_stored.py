"""The gallery model's vectors of all training pictures, embedded once and memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from hetero._files import canonical_json, lock
from hetero._processes import processes
from hetero.augment import View, gather, identity
from hetero.bundle import Bundle
from hetero.fit import Settings
from hetero.progress import Reporter


def drawn_views(settings: Settings, count: int, views: int) -> list[Tensor]:
    """So many views of each of `count` pictures, drawn before training; a seed gives the same."""
    generator = torch.Generator().manual_seed(settings.seed + 77)
    return [settings.augment.draw(count, generator) for _ in range(views)]


def stored_rows(
    stored: Float32[np.ndarray, "v n d"], epoch: int, rows: Tensor
) -> Float32[np.ndarray, "b d"]:
    """The stored vectors of a batch, of the view that the epoch sees."""
    found: Float32[np.ndarray, "b d"] = stored[epoch % len(stored), rows.cpu().numpy()]
    return found


def stored_vectors(
    folder: Path,
    gallery: Bundle,
    gallery_net: nn.Module,
    pixels: UInt8[np.ndarray, "n s s 3"],
    tables: list[Tensor],
    data: str,
    settings: Settings,
    reporter: Reporter,
) -> Float32[np.ndarray, "v n d"]:
    """The gallery model's vectors of all training pictures and views, memory-mapped from a file.

    The file is named by what the vectors depend on, so several query models, methods or sizes
    trained with one `folder` share it; view after view is written straight to disk.

    Args:
        folder: Where the file is, or will be.
        gallery: Whose vectors.
        gallery_net: Its net.
        pixels: Training pictures at input size.
        tables: The views; none stands for the plain pictures alone.
        data: Digest of the collection.
        settings: Seed and augmentation the tables were drawn with.
        reporter: Shows progress.
    """
    key = canonical_json(
        [gallery.digest, data, len(tables), settings.seed, asdict(settings.augment)]
    )
    path = folder / f"gallery-vectors-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if processes().is_main_process and not path.exists():
        # One name for all runs: what a killed one left half written is written over.
        part = path.with_suffix(".part")
        with _alone(part, reporter):
            if path.exists():  # another run was writing it
                part.unlink(missing_ok=True)
            else:
                views = tables or [identity(len(pixels))]
                _embed_views(part, gallery, gallery_net, pixels, views, reporter)
                part.replace(path)
    processes().wait_for_everyone()
    stored: Float32[np.ndarray, "v n d"] = np.load(path, mmap_mode="r", allow_pickle=False)
    return stored


@contextlib.contextmanager
def _alone(part: Path, reporter: Reporter) -> Iterator[None]:
    """While this lasts no other run writes the file; one that does is waited for."""
    said = f"{part.parent}: another run embeds the same pictures; waiting for it"
    with part.open("ab") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            lock(file, lambda: reporter.line(said))
        yield


@torch.no_grad()
def _embed_views(
    part: Path,
    gallery: Bundle,
    gallery_net: nn.Module,
    pixels: UInt8[np.ndarray, "n s s 3"],
    views: list[Tensor],
    reporter: Reporter,
    batch: int = 256,
) -> None:
    device = processes().device
    view = View(gallery.preprocess).to(device)
    shape = (len(views), len(pixels), gallery.space.dim)
    out: np.memmap[Any, Any] = np.lib.format.open_memmap(part, "w+", np.float32, shape)  # type: ignore[no-untyped-call]
    with reporter.bar("embed training pictures", len(views) * len(pixels)) as bar:
        for number, table in enumerate(views):
            for at in range(0, len(pixels), batch):
                here = torch.arange(at, min(at + batch, len(pixels)))
                some = gather(pixels, here, table[here]).to(device)
                out[number, here.numpy()] = gallery_net(view(some, table[here].to(device))).cpu()
                bar.advance(len(some))
    out.flush()
