"""The paper's own scale: a ResNet-101 gallery model, ShuffleNetV2's space, 80 times fewer MACs.

    python -m benchmarks.nas.paper inshop:PATH          In-Shop, hours on an accelerator
    python -m benchmarks.nas.paper cub:PATH             CUB-200-2011
    python -m benchmarks.nas.paper emoji --small        the same steps in minutes on a CPU

Duggal et al., CVPR 2021: the gallery model is trained as a classifier; a single-path supernet of
20 choice blocks by uniform sampling with the two-headed compatibility loss against the frozen
classifier; evolution by R3 under the budget; the winner trained from scratch with that loss. Scored
on test classes: paragon, the winner in the gallery's index and in its own, the same architecture
trained alone. --small replaces sizes and lengths, nothing else, and shows that the script runs; its
numbers are no results. Every step is kept in --work and taken over. Raw results go to
benchmarks/results/nas-paper-NAME.json.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.lab import RESULTS, WORK, embed_split, machine, pair, save

CHEAPER = 80


@dataclass(frozen=True)
class Scale:
    """Sizes and lengths."""

    gallery: str
    space: str
    size_px: int
    dim: int
    gallery_epochs: int
    supernet_epochs: int
    epochs: int
    scored: int
    batch: int
    cheaper: int


FULL = Scale(
    "torchvision:resnet101", "shufflenet:width=1,stem=2", 224, 256, 60, 150, 120, 1000, 256, CHEAPER
)
SMALL = Scale("resnet:width=8", "shufflenet:width=0.2,stem=2", 32, 64, 2, 1, 1, 6, 128, 2)


def main() -> None:
    """Train, search, train, score, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=WORK / "nas-paper")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    scale = SMALL if args.small else FULL

    from hetero import data as sources
    from hetero import nas
    from hetero.fit import Settings
    from hetero.preprocess import Preprocess
    from hetero.progress import Reporter
    from hetero.stages import searching
    from hetero.train import GalleryRecipe, SupernetRecipe, train_gallery

    images = sources.load(args.data)
    name = images.name.partition(":")[0]
    work = args.work / f"{name}{'-small' if args.small else ''}"
    reporter = Reporter()

    def settings(epochs: int, lr: float = 1e-2) -> Settings:
        return Settings(
            epochs=epochs, batch=scale.batch, lr=lr, seed=args.seed, keep_going=args.small
        )

    gallery = train_gallery(
        images,
        GalleryRecipe(scale.gallery, scale.dim),
        Preprocess(scale.size_px),
        settings(scale.gallery_epochs, 3e-3),
        work / "gallery",
        resume=True,
        reporter=reporter,
    )
    macs = gallery.manifest.model.macs
    outcome = searching.search(
        gallery,
        images,
        SupernetRecipe(scale.space, "single", "bct", None, 0),
        settings(scale.supernet_epochs),
        nas.Budget("macs", macs / scale.cheaper),
        searching.SearchOptions(
            scale.scored,
            probes=0 if args.small else 3,
            probe_epochs=max(1, scale.epochs // 10),
            epochs=scale.epochs,
            start="scratch",
        ),
        work / "search",
        resume=True,
        reporter=reporter,
    )
    alone = train_gallery(
        images,
        GalleryRecipe(outcome.found.best.backbone, scale.dim),
        Preprocess(scale.size_px),
        settings(scale.epochs, 3e-3),
        work / "alone",
        resume=True,
        reporter=reporter,
    )
    task, theirs = embed_split(gallery.root, args.data)
    _, ours = embed_split(outcome.bundle.root, args.data)
    _, lonely = embed_split(alone.root, args.data)
    found: dict[str, Any] = {
        "paragon": pair(task, theirs, theirs),
        "heterogeneous": pair(task, ours, theirs),
        "own": pair(task, ours, ours),
        "alone": pair(task, lonely, lonely),
    }
    for key, scores in found.items():
        print(f"{key}: R@1 {100 * scores['recall_at_1']:.1f}, mAP {100 * scores['map']:.1f}")
    if args.small:
        return
    save(
        args.results / f"nas-paper-{name}.json",
        {
            "command": f"python -m benchmarks.nas.paper {name}:PATH",
            "seed": args.seed,
            "machine": machine(),
            "scale": asdict(scale),
            "gallery_macs": macs,
            "query_macs": outcome.bundle.manifest.model.macs,
            "backbone": outcome.found.best.backbone,
            "health": asdict(outcome.health) if outcome.health else None,
            "scores": found,
        },
    )


if __name__ == "__main__":
    main()
