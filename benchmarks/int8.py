"""What int8 costs search, and what mixed precision and quantisation-aware training give back.

    hetero demo --seed 0 -o RUN
    python -m benchmarks.int8 RUN

The demo's query model in int8 by ONNX Runtime and LiteRT: every layer in int8; the fewest layers
in float that keep to the limits on validation classes; and both again after six epochs of
quantisation-aware training, from the same seed and so from the same float weights. Core ML's int8
is of weights alone, runs in the reference interpreter on a part of the queries, and has no layers
to choose. Scored on test classes in the gallery's index, each file against its own model in
PyTorch. Raw numbers go to benchmarks/results/int8.json, first those without training.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.lab import RESULTS, WORK, machine, save

FORMATS = ("onnx", "tflite", "coreml")


def main() -> None:
    """Train where needed, export four ways, score, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--qat", type=int, default=6)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")

    from hetero import data, demo
    from hetero.bundle import Bundle
    from hetero.fit import Settings
    from hetero.progress import Reporter
    from hetero.train import QUERY_LR, train_query

    reporter, images = Reporter(), data.load("emoji")
    gallery, plain = (Bundle.load(args.run / role) for role in ("gallery", "query"))
    rows: list[dict[str, Any]] = []
    for how in ("float training", "with int8 epochs")[: 2 if args.qat else 1]:
        bundle = plain
        if how != "float training":
            bundle = train_query(
                gallery,
                images,
                replace(demo.FULL.query, qat=args.qat),
                Settings(epochs=demo.FULL.query_epochs, lr=QUERY_LR, seed=args.seed),
                args.work / "int8" / "qat",
                resume=True,
                reporter=reporter,
            )
        reference, pixels = _reference(bundle, gallery, images)
        for mixed in (False, True):
            root = args.work / "int8" / f"{how.split()[0]}-{'mixed' if mixed else 'all'}"
            rows += [
                {"training": how, "mixed": mixed, **row}
                for row in _scored(
                    _bare(bundle, root), gallery if mixed else None, images, reference, pixels
                )
            ]
        save(
            args.results / "int8.json",
            {
                "command": "python -m benchmarks.int8 RUN" + ("" if args.qat else " --qat 0"),
                "seed": args.seed,
                "qat_epochs": args.qat,
                "machine": machine(),
                "files": rows,
            },
        )
    for row in rows:
        print(row)


def _bare(bundle: Any, root: Path) -> Any:
    """A copy of the bundle; exported files come into it, and those that are there stay."""
    from hetero.bundle import Bundle
    from hetero.errors import BundleError

    try:
        kept = Bundle.load(root)
        if kept.manifest.recipe == bundle.manifest.recipe:
            return kept
    except BundleError:
        pass
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(bundle.root, root)
    return Bundle.load(root)


def _reference(bundle: Any, gallery: Any, images: Any) -> tuple[Any, Any]:
    """What PyTorch gives on test classes, and the pictures."""
    from hetero import models
    from hetero.check import Reference
    from hetero.evaluate import task

    job = task(images, "test")
    pixels = images.pixels(job.rows, gallery.preprocess)
    g, q = (models.TorchEmbedder(b).embed(job.ids, pixels) for b in (gallery, bundle))
    return Reference.make(job, g, q), pixels


def _scored(
    bundle: Any, gallery: Any, images: Any, reference: Any, pixels: Any
) -> list[dict[str, Any]]:
    """For each format what the int8 file loses."""
    from hetero.bundle import Bundle
    from hetero.check import Place, file
    from hetero.errors import ExportError
    from hetero.export import FileEmbedder
    from hetero.progress import Reporter
    from hetero.stages.exporting import export_all
    from hetero.stages.running import REFERENCE_QUERIES

    formats = [f for f in FORMATS if gallery is None or f != "coreml"]
    out: list[dict[str, Any]] = []
    place = {name: row for row, name in enumerate(reference.task.ids)}
    for format in formats:
        # Not of the run that the bundle was copied from.
        ours = bundle.root.with_name(f"{bundle.root.name}-{format}-exported")
        try:
            done = export_all(
                Bundle.load(bundle.root),
                (format,),
                ("int8",),
                images=images,
                gallery=gallery,
                bake=True,
                batch=None,
                resume=ours.exists(),
                reporter=Reporter(),
            )
            ours.touch()
        except ExportError as error:
            out.append({"format": format, "refused": str(error)})
            continue
        item = done.artifact(format, "int8")
        asked = reference.task.query_ids
        held = reference
        if format == "coreml":
            asked = asked[:: -(-len(asked) // REFERENCE_QUERIES)]
            held = reference.only(asked)
        with FileEmbedder(done, item) as embedder:
            vectors = embedder.embed(asked, pixels[[place[name] for name in asked]])
        found = {m.name: m for m in file(held, Place("local", format, "int8"), vectors)}
        row: dict[str, Any] = {
            "format": format,
            "runtime": item.facts["compared_with"],
            "queries": len(asked),
            "size_bytes": item.size_bytes,
            "layers_in_float": item.facts.get("layers_in_float", 0),
            "layers": item.facts.get("layers", 0),
        }
        for name in (
            "heterogeneous_recall_at_1",
            "recall_at_1_lost",
            "query_negative_flip_rate",
            "cosine_worst",
            "cosine_median",
        ):
            row[name] = found[name].value
            if (ci := found[name].ci) is not None:
                row[f"{name}_ci"] = list(ci)
        out.append(row)
    return out


if __name__ == "__main__":
    main()
