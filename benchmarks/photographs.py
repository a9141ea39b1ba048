"""A real pretrained gallery model, photographs without labels, a query model a 20th of its size.

    python -m benchmarks.photographs CLOTHING.zip

EfficientNet-Lite0 with ImageNet weights becomes a gallery model as it is; a query model is trained
into its space on the training photographs, whose labels are never read; both search the test and
validation photographs, which neither saw. The ten classes (dress, hat, ...) only say which answers
are right. ImageNet has garments too, so this is a result on unseen photographs, not on unseen
classes. The zip holds {train,validation,test}/CLASS/PICTURE.jpg.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.lab import RESULTS, WORK, machine, pair, save

os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def unpack(path: Path, folder: Path) -> tuple[str, str]:
    """The training pictures and the test list, as `hetero.data.load` takes them."""
    if not (folder / "test.csv").exists():
        with zipfile.ZipFile(path) as file:
            file.extractall(folder)
        rows = [
            (str(p.relative_to(folder)), p.parent.name, "test", "both")
            for part in ("test", "validation")
            for p in sorted((folder / part).glob("*/*.jpg"))
        ]
        with (folder / "test.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "split", "role"])
            writer.writerows(rows)
    return f"unlabelled:{folder / 'train'}", f"manifest:{folder / 'test.csv'}"


def main() -> None:
    """Adopt, train, score, write."""
    import time

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zip", type=Path)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--backbone", default="mobilenet:width=0.35")
    parser.add_argument("--method", default="csd+regression")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--mix", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()

    from hetero import data, models
    from hetero.augment import Augment
    from hetero.bundle import Bundle
    from hetero.evaluate import raw_pixels, task
    from hetero.fit import Settings
    from hetero.preprocess import Preprocess
    from hetero.progress import Reporter
    from hetero.train import QUERY_LR, QueryRecipe, adopt_gallery, train_query

    work = args.work / "photographs"
    train, test = unpack(args.zip, work / "pictures")
    images, reporter = data.load(train), Reporter()
    preprocess = Preprocess(args.size, mean=(0.498,) * 3, std=(0.502,) * 3)
    root = work / "gallery"
    gallery = (
        Bundle.load(root)
        if (root / "manifest.json").exists()
        else adopt_gallery(
            images,
            "benchmarks.pretrained:efficientnet_lite0",
            args.dim,
            preprocess,
            root,
            reporter=reporter,
        )
    )
    begun = time.process_time()
    query = train_query(
        gallery,
        images,
        QueryRecipe(args.backbone, args.method, views=args.views),
        Settings(
            epochs=args.epochs, lr=QUERY_LR, seed=args.seed, augment=Augment(flip=0.5, mix=args.mix)
        ),
        work / "query",
        resume=True,
        reporter=reporter,
    )
    spent = time.process_time() - begun
    found = data.load(test)
    job = task(found, "test")
    pixels = found.pixels(job.rows, preprocess)
    g, q = (models.TorchEmbedder(b).embed(job.ids, pixels) for b in (gallery, query))
    flat = raw_pixels(job.ids, pixels)
    scores: dict[str, Any] = {
        "paragon": pair(job, g, g),
        "heterogeneous": pair(job, q, g),
        "own": pair(job, q, q),
        "pixels": pair(job, flat, flat),
    }
    save(
        args.results / "photographs.json",
        {
            "command": "python -m benchmarks.photographs CLOTHING.zip",
            "arguments": {k: str(v) for k, v in vars(args).items() if k not in ("zip", "work")},
            "training_pictures": len(images.rows("train")),
            "test_pictures": len(job.ids),
            "gallery": gallery.manifest.model.model_dump(),
            "query": query.manifest.model.model_dump(),
            "cpu_s": round(spent, 1),
            "machine": machine(),
            "scores": scores,
        },
    )
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
