"""Training pictures per second: our loop against bare forward/backward of the same model.

    python -m benchmarks.training --output benchmarks/results/training.json

Both sides do the same steps on the same batch size; the bare side feeds one fixed batch of ready
float tensors, so the difference is everything around the model: order, augmentation, copying,
schedule, progress; validation is excluded. The two alternate, a block of steps each, so that both
see the same noise of a shared machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # as the command line does

import numpy as np
import torch
from torch import nn

from benchmarks.lab import epoch_speed
from hetero import data, models
from hetero.augment import View
from hetero.heads import CosineHead
from hetero.preprocess import Preprocess
from hetero.train.gallery import GalleryObjective


def bare(net: nn.Module, head: nn.Module, batch: int, steps: int, size_px: int) -> float:
    """Pictures per second of forward, backward and optimiser on a fixed batch."""
    pictures = torch.randn(batch, 3, size_px, size_px).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=1e-5)
    net.train()
    begun = time.monotonic()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(head(net(pictures), labels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return batch * steps / (time.monotonic() - begun)


def ours(
    net: nn.Module, head: CosineHead, pixels: np.ndarray, labels: torch.Tensor, batch: int
) -> float:
    """Pictures per second of one epoch of `hetero.fit.fit`, as it reports them itself."""
    objective = GalleryObjective(net, head, View(Preprocess(pixels.shape[1])), labels)
    with tempfile.TemporaryDirectory() as folder:
        return epoch_speed(objective, pixels, batch, Path(folder))


def main() -> None:
    """Write raw speeds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/training.json"))
    parser.add_argument(
        "--backbones", nargs="*", default=["resnet:width=16", "mobilenet:width=1.0"]
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    images = data.load("emoji")
    rows = images.rows("train")[: args.steps * args.batch]
    pixels = images.pixels(rows, Preprocess(32))
    names = sorted({images.labels[r] for r in rows})
    labels = torch.tensor([names.index(images.labels[r]) for r in rows])
    out = []
    for spec in args.backbones:
        torch.manual_seed(0)
        net, head = models.build(spec, 128), CosineHead(128, len(names))
        net = net.to(memory_format=torch.channels_last)
        bare(net, head, args.batch, 4, 32)
        pairs = []
        for _ in range(args.repeats):
            pairs.append(
                {
                    "bare_images_per_s": bare(net, head, args.batch, args.steps, 32),
                    "ours_images_per_s": ours(net, head, pixels, labels, args.batch),
                }
            )
        ratios = [p["ours_images_per_s"] / p["bare_images_per_s"] for p in pairs]
        out.append({"backbone": spec, "pairs": pairs, "ratio_median": statistics.median(ratios)})
        span = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{spec}: {statistics.median(ratios):.3f} of bare speed ({span})")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    args.output.write_text(json.dumps({"machine": machine, "results": out}, indent=1) + "\n")


if __name__ == "__main__":
    main()
