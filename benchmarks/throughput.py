"""Query training per second: stored gallery vectors against running the gallery model each batch.

    python -m benchmarks.throughput

Both sides train the same query model on the same pictures with the same views, optimiser and loss;
the usual loop embeds each batch with the gallery model first, ours reads the stored vectors of
those views. The two alternate, some steps each, so that both see the same noise. What storing costs
once is shown as the number of epochs after which it is paid back. Several gallery models, because
the ratio is theirs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # as the command line does

import numpy as np
import torch

from benchmarks.lab import RESULTS, epoch_speed, machine, save
from hetero import data, methods, models
from hetero.augment import Augment, View
from hetero.preprocess import Preprocess
from hetero.train.query import QueryObjective


class _Usual(QueryObjective):
    """The same, but the gallery model runs for each batch."""

    gallery_net: torch.nn.Module

    def forward(
        self,
        pixels: torch.Tensor,
        views: torch.Tensor,
        rows: torch.Tensor,
        epoch: int,
        progress: float,
    ) -> torch.Tensor:
        seen = self.view(pixels, views)
        with torch.no_grad():
            gallery = self.gallery_net(seen)
        step = methods.Step(self.net(seen), gallery, rows, None, progress)
        return self.method.loss(step, self.own)


def main() -> None:
    """Write raw speeds and their ratios."""
    import tempfile

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "throughput.json")
    parser.add_argument("--query", default="mobilenet:width=0.5")
    parser.add_argument(
        "--galleries", nargs="*", default=["resnet:width=16", "resnet:width=32", "resnet:width=64"]
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    images = data.load("emoji")
    rows = images.rows("train")[: args.steps * args.batch]
    preprocess = Preprocess(32)
    pixels = images.pixels(rows, preprocess)
    tables = [Augment().draw(len(rows), torch.Generator().manual_seed(0))]
    out = []
    for spec in args.galleries:
        torch.manual_seed(0)
        gallery = models.build(spec, 128, 32).eval().to(memory_format=torch.channels_last)
        view = View(preprocess)
        begun = time.monotonic()
        with torch.no_grad():
            stored = np.concatenate(
                [
                    gallery(
                        view(torch.from_numpy(pixels[i : i + 256]), tables[0][i : i + 256])
                    ).numpy()
                    for i in range(0, len(pixels), 256)
                ]
            )
        once = time.monotonic() - begun
        method = methods.make("regression")
        setup = methods.Setup(stored[None])
        sides = []
        for kind in (QueryObjective, _Usual):
            torch.manual_seed(0)
            net = models.build(args.query, 128, 32)
            made = kind(net, method, method.own(setup), view, setup, tables)
            if isinstance(made, _Usual):
                # Not a part of the objective: the optimiser must not see it.
                object.__setattr__(made, "gallery_net", gallery)
            sides.append(made)
        ours, usual = sides
        pairs = []
        with tempfile.TemporaryDirectory() as folder:
            epoch_speed(ours, pixels, args.batch, Path(folder))
            for _ in range(args.repeats):
                pairs.append(
                    {
                        "stored_images_per_s": epoch_speed(ours, pixels, args.batch, Path(folder)),
                        "usual_images_per_s": epoch_speed(usual, pixels, args.batch, Path(folder)),
                    }
                )
        ratios = [p["stored_images_per_s"] / p["usual_images_per_s"] for p in pairs]
        saved = statistics.median(
            len(pixels) / p["usual_images_per_s"] - len(pixels) / p["stored_images_per_s"]
            for p in pairs
        )
        macs = [models.count(m, 32)[1] for m in (gallery, ours.net)]  # type: ignore[arg-type]
        out.append(
            {
                "gallery": spec,
                "query": args.query,
                "gallery_macs": macs[0],
                "query_macs": macs[1],
                "pairs": pairs,
                "ratio_median": statistics.median(ratios),
                "view_paid_back_after_epochs": once / saved,
            }
        )
        print(
            f"{spec} ({macs[0] / macs[1]:.0f}x the query's MACs): {statistics.median(ratios):.2f} "
            f"times as fast ({min(ratios):.2f} to {max(ratios):.2f}); a view is paid back after "
            f"{once / saved:.1f} epochs"
        )
    save(
        args.output,
        {"command": "python -m benchmarks.throughput", "machine": machine(), "results": out},
    )


if __name__ == "__main__":
    main()
