"""Indexes of a gallery of a million rows: exact search against bare faiss, and approximate ones.

    python -m benchmarks.index            1,000,000 x 256; hours on two cores, most of it building
    python -m benchmarks.index --quick    20,000 rows, to see the program work
    python -m benchmarks.index --parts hnsw,ivfpq

What an earlier run measured, of the same rows, and this one is not asked for, is kept.

*The rows.* Real vectors are those of the 10,900 embedded pictures: their pixels at 16 x 16,
centred, turned to the first 256 principal components, normalised (or any file by `hetero embed`,
with --embeddings). A synthetic row is one of them, moved along the difference of two of its ten
nearest neighbours by a normal factor, and by a tenth of its length in any direction: so rows crowd
where pictures do, along the directions in which pictures differ there. A fifth of the classes gives
queries only.

*The query models.* The gallery model's queries are made as the rows are. A small query model is
imitated: the same vectors turned in a random direction until their cosine to those is --cosine, a
number that was chosen and not measured. Real ones are for `hetero index recall`.

*Exact.* Bare `faiss.IndexFlatIP.search`, the engine `exact`, and `hetero.retrieval.rank` (the rank
of every right answer, in memory bounded by --memory-mib) alternate, so that all see the same noise.
Right answers are the rows made of the query's own picture; the first ten of these, as many as the
field's benchmarks have; and all rows of its class, whose pictures raw pixels do not bring together:
what lies ahead of most right answers is half of the gallery, and counting it takes longer than
finding it.
What memory grows by is taken from the kernel's high-water mark, over what was held before the call;
the most of all repeats.

*Approximate.* `hetero.stages.indexing.recall` on each engine, as `hetero index recall` does it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lab import RESULTS, machine, save
from hetero import index
from hetero._settings import fill
from hetero.progress import Reporter
from hetero.retrieval import Truth, rank
from hetero.space import Embeddings, Space
from hetero.stages import indexing

#: Engine with settings -> efforts that are tried.
ENGINES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "hnsw": ("hnsw", {}, (16, 32, 64, 128, 256, 512)),
    "ivfpq": ("ivfpq", {}, (1, 4, 16, 64, 256)),
    "ivfpq 128 bytes": ("ivfpq", {"bytes": 128}, (1, 4, 16, 64, 256)),
    "usearch": ("usearch", {}, (16, 32, 64, 128, 256, 512)),
    "usearch i8": ("usearch", {"dtype": "i8"}, (16, 32, 64, 128, 256, 512)),
}
NEIGHBOURS, NOISE = 10, 0.1
#: What `rank` is asked for, in words.
ANSWERS = {
    "ten of the picture": "the first ten rows of the query's picture",
    "picture": "all rows of the query's picture",
    "class": "all rows of the query's class",
}


def real(path: Path | None, dim: int) -> tuple[Embeddings, tuple[str, ...]]:
    """Vectors of pictures, and their classes."""
    from hetero import data, evaluate
    from hetero.data import Images

    images: Images = data.load("emoji")
    classes = dict(zip(images.ids, images.labels, strict=True))
    if path is not None:
        made = Embeddings.load(path)
        return made, tuple(classes.get(i, i) for i in made.ids)
    from hetero.preprocess import Preprocess

    pixels = images.pixels(range(len(images)), Preprocess(32))
    raw = evaluate.raw_pixels(images.ids, pixels).vectors.astype(np.float64)
    raw -= raw.mean(0)
    _, axes = np.linalg.eigh(raw.T @ raw)
    space = Space("pixels-pca", "0" * 64, dim)
    turned = raw @ axes[:, ::-1][:, :dim]
    return Embeddings.normalised(space, images.ids, turned, "pixels"), images.labels


class Synthesis:
    """Synthetic rows of real ones."""

    def __init__(self, vectors: np.ndarray, prefix: str) -> None:
        self.vectors, self.prefix = vectors, prefix
        best = np.argpartition(-(vectors @ vectors.T), NEIGHBOURS + 1, axis=1)
        self.near = best[:, : NEIGHBOURS + 1]

    def rows(self, space: Space, count: int, seed: int) -> tuple[Embeddings, np.ndarray]:
        """Unit rows, made in parts, and which real one each is made of."""
        random = np.random.default_rng(seed)
        out = np.empty((count, space.dim), np.float32)
        source = random.integers(0, len(self.vectors), count)
        for a in range(0, count, 50_000):
            of = source[a : a + 50_000]
            pair = self.near[of[:, None], random.integers(0, NEIGHBOURS + 1, (len(of), 2))]
            along = self.vectors[pair[:, 0]] - self.vectors[pair[:, 1]]
            moved = self.vectors[of] + random.standard_normal((len(of), 1)) * along
            noise = random.standard_normal((len(of), space.dim), dtype=np.float32)
            moved = moved + NOISE * noise / np.sqrt(space.dim)
            out[a : a + 50_000] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        ids = tuple(f"{self.prefix}{i}" for i in range(count))
        return Embeddings(space, ids, out, "gallery model"), source


def first_of_each(source: np.ndarray, count: int) -> np.ndarray:
    """The sources, and -1 for a row before which there are so many of the same one."""
    order = np.argsort(source, kind="stable")
    alike = source[order]
    out = source.copy()
    out[order[np.arange(len(source)) - np.searchsorted(alike, alike) >= count]] = -1
    return out


def turned(rows: Embeddings, cosine: float, seed: int) -> Embeddings:
    """The rows, each turned in a random direction to this cosine with itself."""
    random = np.random.default_rng(seed)
    aside = random.standard_normal(rows.vectors.shape)
    aside -= (aside * rows.vectors).sum(1, keepdims=True) * rows.vectors
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    made = cosine * rows.vectors + np.sqrt(1 - cosine**2) * aside
    return Embeddings.normalised(rows.space, rows.ids, made, "small query model")


def grown_mib(call: Callable[[], Any]) -> float:
    """How far the process's memory rises above what it holds before, in MiB; Linux."""

    def status(key: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1])
        raise SystemExit(f"/proc/self/status has no {key}")

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is put back to what is
    before = status("VmRSS")
    call()
    return (status("VmHWM") - before) / 1024


def exact_part(
    gallery: Embeddings,
    queries: Embeddings,
    truths: dict[str, Truth],
    spec: str,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Bare faiss, the engine `exact`, and ranks of all right answers, in turn."""
    import faiss

    ours = index.load(spec)
    bare = faiss.downcast_index(ours._index)  # type: ignore[attr-defined]  # the very same rows
    asked = np.array(queries.vectors)
    block_mib = args.memory_mib / 2
    calls: dict[str, Callable[[], Any]] = {
        "faiss": lambda: bare.search(asked, args.k),
        "exact": lambda: ours.search(queries, args.k),
    }
    for name, truth in truths.items():
        calls[name] = partial(rank, queries, gallery, truth, block_mib=block_mib)
    grown: dict[str, float] = {}
    pairs: list[dict[str, float]] = []
    for repeat in range(args.repeats):
        pairs.append({})
        for name, call in calls.items():
            begun = time.monotonic()
            more = grown_mib(call)
            pairs[-1][name] = time.monotonic() - begun
            grown[name] = max(more, grown.get(name, more))
        print(f"exact, repeat {repeat + 1}: {pairs[-1]}", flush=True)
    _, rows = bare.search(asked, args.k)
    found = ours.search(queries, args.k).ids
    same = np.mean(
        [[gallery.ids[r] for r in line] == list(ids) for line, ids in zip(rows, found, strict=True)]
    )
    ours.close()
    return {
        "queries": len(queries),
        "k": args.k,
        "memory_mib": args.memory_mib,
        "block_mib": block_mib,
        "grown_mib": grown,
        "answers": {name: _answers(truth) for name, truth in truths.items()},
        "ratio_median": {
            name: statistics.median(p[name] / p["faiss"] for p in pairs) for name in calls
        },
        "lines_that_agree": float(same),
        "pairs": pairs,
    }


def _answers(truth: Truth) -> float:
    """Right answers a query, in the mean."""
    each = Counter(truth.gallery_labels)
    return statistics.fmean(each[x] for x in truth.query_labels)


def main() -> None:
    """Write all times, and recall by engine, effort and query model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--gallery", type=int)
    parser.add_argument("--queries", type=int, help="For exact search.")
    parser.add_argument("--asked", type=int, help="Queries of each model for recall.")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--cosine", type=float, default=0.8)
    parser.add_argument("--memory-mib", type=float, default=256)
    parser.add_argument("--repeats", type=int)
    parser.add_argument(
        "--parts", help=f"Of exact, {', '.join(ENGINES)}; of --quick the first three."
    )
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--folder", type=Path, help="For the indexes; else a temporary one.")
    args = parser.parse_args()
    usual = (20_000, 500, 300, 2) if args.quick else (1_000_000, 10_000, 2000, 3)
    for name, value in zip(("gallery", "queries", "asked", "repeats"), usual, strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    name = "index-quick.json" if args.quick else "index.json"
    args.output = args.output or RESULTS / name
    known = ["exact", *ENGINES][: 3 if args.quick else None]
    chosen = [x.strip() for x in args.parts.split(",")] if args.parts else known
    if unknown := set(chosen) - {"exact", *ENGINES}:
        raise SystemExit(f"--parts: {min(unknown)!r}; there are exact, {', '.join(ENGINES)}")

    base, labels = real(args.embeddings, args.dim)
    classes = sorted(set(labels))
    held_out = set(classes[::5])
    parts = []
    for prefix, wanted in (("g", False), ("q", True)):
        at = [i for i, x in enumerate(labels) if (x in held_out) is wanted]
        parts.append((Synthesis(base.vectors[at], prefix), np.asarray([labels[i] for i in at])))
    # Right answers, for ranks: queries of their own from the gallery's classes.
    (indexed, its_classes), (others, other_classes) = parts
    rows, row_source = indexed.rows(base.space, args.gallery, 1)
    ranked, ranked_source = indexed.rows(base.space, args.queries, 2)
    ranked = Embeddings(base.space, tuple(f"r{i}" for i in range(len(ranked))), ranked.vectors, "r")
    truths = {
        name: Truth(tuple(map(str, wanted)), ("",) * len(ranked), tuple(map(str, there)), rows.ids)
        for name, wanted, there in (
            ("ten of the picture", ranked_source, first_of_each(row_source, 10)),
            ("picture", ranked_source, row_source),
            ("class", its_classes[ranked_source], its_classes[row_source]),
        )
    }
    asked, asked_source = others.rows(base.space, args.asked, 3)
    models = [asked, turned(asked, args.cosine, 4)]
    by_class = dict(zip(asked.ids, map(str, other_classes[asked_source]), strict=True))
    print(f"{len(rows):,} rows of {len(base):,} real ones", flush=True)

    folder = args.folder or Path(tempfile.mkdtemp(prefix="hetero-index-"))
    reporter = Reporter()
    out: dict[str, Any] = {
        "command": "python -m benchmarks.index" + (" --quick" if args.quick else ""),
        "gallery": len(rows),
        "dim": base.space.dim,
        "real": len(base),
        "made_of": base.made_by,
        "cosine_of_small_model": args.cosine,
        "machine": machine(),
        "engines": {},
    }
    if args.output.exists():
        kept = json.loads(args.output.read_text())
        if all(kept.get(k) == v for k, v in out.items() if k not in ("machine", "engines")):
            out |= {k: kept[k] for k in ("exact", "engines") if k in kept}
    try:
        whole = f"exact:{folder / 'exact'}"
        _built(whole, rows, {})
        if "exact" in chosen:
            out["exact"] = exact_part(rows, ranked, truths, whole, args)
            save(args.output, out)
        for label in (x for x in chosen if x != "exact"):
            engine, settings, efforts = ENGINES[label]
            spec = f"{engine}:{folder / label.replace(' ', '-')}"
            seconds = _built(spec, rows, settings)
            file = next((folder / label.replace(" ", "-")).glob("rows-*"))
            found = indexing.recall(
                spec, whole, models, folder / "recall", reporter, k=args.k, efforts=efforts,
                repeats=args.repeats, labels=by_class,
            ).to_json()  # fmt: skip
            found["index"], found["exact"] = f"{label}:", "exact:"  # no path of this machine
            out["engines"][label] = {
                "settings": _settings(engine, settings),
                "build_s": seconds,
                "bytes_a_row": file.stat().st_size / len(rows),
                "recall": found,
            }
            print(f"{label}: built in {seconds:.0f} s", flush=True)
            shutil.rmtree(folder / label.replace(" ", "-"))
            save(args.output, out)
    finally:
        if args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    if "exact" in out:
        print(section(out))


def _built(spec: str, rows: Embeddings, settings: dict[str, Any]) -> float:
    begun = time.monotonic()
    with index.create(spec, rows.space, settings) as made:
        made.add(rows)
        made.save()
    return time.monotonic() - begun


def _settings(engine: str, settings: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from hetero import _plugins

    return asdict(fill(_plugins.load("hetero.index", engine), "Engine", engine, settings))


# -- the page -------------------------------------------------------------------------------------


def section(raw: dict[str, Any]) -> str:
    """The section of docs/results.md."""
    lines = [
        "## Indexes of a gallery",
        "",
        f"`{raw['command']}`: {raw['gallery']:,} x {raw['dim']} rows made of {raw['real']:,} real ones ({raw['made_of']}; "  # noqa: E501
        "the file's first lines say how). The small query model is imitated, by vectors of cosine "
        f"{raw['cosine_of_small_model']} to the gallery model's.",
        "",
    ]
    if e := raw.get("exact"):
        lines += _exact(e)
    if not raw["engines"]:
        return "\n".join(lines)
    lines += [
        "![recall over time](img/index.svg)",
        "",
        f"Recall of the {e['k']} nearest rows in percent, and ms a query of a batch:",
        "",
        "| engine | built in | bytes a row | effort | gallery model | small query model | difference |",  # noqa: E501
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, engine in raw["engines"].items():
        big, small = engine["recall"]["models"]
        for at, (p, q) in enumerate(zip(big["points"], small["points"], strict=True)):
            head = f"{name} | {engine['build_s']:.0f} s | {engine['bytes_a_row']:.0f}"
            low, high = q["difference_ci"] or (q["difference"], q["difference"])
            lines.append(
                f"| {head if not at else ' | | '} | {engine['recall']['effort']} {p['effort']} "
                f"| {100 * p['recall']:.1f}, {p['ms']:.2f} ms "
                f"| {100 * q['recall']:.1f}, {q['ms']:.2f} ms "
                f"| {100 * q['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) |"
            )
    ms = [m["exact_ms"] for x in raw["engines"].values() for m in x["recall"]["models"]]
    if ms:
        lines += ["", f"Exact search in the same runs: {min(ms):.2f} to {max(ms):.2f} ms a query."]
    return "\n".join([*lines, ""])


def _exact(e: dict[str, Any]) -> list[str]:
    faiss_ms = 1000 * statistics.median(p["faiss"] for p in e["pairs"]) / e["queries"]
    return [
        f"Exact search of {e['queries']:,} queries, beside bare faiss flat's first {e['k']} in the "
        f"same run; memory grows by so many MiB, where {e['memory_mib']:.0f} are allowed:",
        "",
        "| | over faiss's time | MiB |",
        "| --- | --- | --- |",
        *(
            f"| {words} | {e['ratio_median'][name]:.2f} | {e['grown_mib'][name]:.0f} |"
            for name, words in (
                ("faiss", "bare faiss flat"),
                ("exact", f"engine `exact`, first {e['k']}"),
                *(
                    (name, f"ranks of {ANSWERS[name]}, {count:.0f} a query")
                    for name, count in e["answers"].items()
                ),
            )
        ),
        "",
        "Ranks of all right answers, which mAP is made of, are more than a search for the first: "
        "every similarity is compared with the lowest right one's, and those above it are counted. "
        f"That takes the same time however fast the products are, here {faiss_ms:.1f} ms a query; "
        "the nearer the right answers, the less of it.",
        "",
    ]


def picture(raw: dict[str, Any]) -> str:
    """Recall over time of all engines."""
    from hetero.render.recall import curves

    return curves(*(engine["recall"] for engine in raw["engines"].values()))


if __name__ == "__main__":
    main()
