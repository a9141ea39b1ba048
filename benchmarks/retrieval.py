"""Exact retrieval evaluation against faiss-cpu's flat index, side by side in one run.

    python -m benchmarks.retrieval

`rank` computes the rank of every right answer (all that recall@k, mAP and CMC need) for each query;
`search` and faiss find the first k. All are exact. They alternate, so that all see the same noise;
memory of ours is bounded by --block-mib, which is checked in a run of its own that is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import tracemalloc
from pathlib import Path

import numpy as np

from hetero.evaluate import scores
from hetero.retrieval import BLOCK_MIB, Truth, rank, search
from hetero.space import Embeddings, Space


def made(count: int, dim: int, classes: int, seed: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Unit rows around one centre per class, and their classes."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((classes, dim), dtype=np.float32)
    code = random.integers(0, classes, count)
    rows = centres[code] + random.standard_normal((count, dim), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), tuple(map(str, code))


def main() -> None:
    """Write both times of every repeat and the median of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/retrieval.json"))
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--block-mib", type=float, default=BLOCK_MIB)
    args = parser.parse_args()
    import faiss

    space = Space("benchmark", "0" * 64, args.dim)
    g, g_labels = made(args.gallery, args.dim, args.gallery // 10, 1)
    q, q_labels = made(args.queries, args.dim, args.gallery // 10, 2)
    g_ids = tuple(f"g{i}" for i in range(len(g)))
    q_ids = tuple(f"q{i}" for i in range(len(q)))
    gallery = Embeddings(space, g_ids, g, "benchmark")
    queries = Embeddings(space, q_ids, q, "benchmark")
    truth = Truth(q_labels, q_ids, g_labels, g_ids)
    index = faiss.IndexFlatIP(args.dim)
    index.add(g)
    tracemalloc.start()  # NumPy's arrays are counted too
    rank(queries, gallery, truth, block_mib=args.block_mib)
    grown_mib = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    pairs, agree, same = [], 0.0, 0.0
    for _ in range(args.repeats):
        begun = time.monotonic()
        ranks = rank(queries, gallery, truth, block_mib=args.block_mib)
        ours_s = time.monotonic() - begun
        begun = time.monotonic()
        _, found = index.search(q, args.k)
        faiss_s = time.monotonic() - begun
        begun = time.monotonic()
        ours, _ = search(queries, gallery, args.k, block_mib=args.block_mib)
        search_s = time.monotonic() - begun
        pairs.append({"ours_s": ours_s, "faiss_s": faiss_s, "search_s": search_s})
        same = float(np.mean(ours == found))
        first = np.asarray([g_labels[i] for i in found[:, 0]])
        right = first[ranks.queries] == np.asarray(q_labels)[ranks.queries]
        agree = float(np.mean(right == (ranks.best == 0)))
    ratios, searches = ([p[k] / p["faiss_s"] for p in pairs] for k in ("ours_s", "search_s"))
    out = {
        "gallery": args.gallery,
        "queries": args.queries,
        "dim": args.dim,
        "k": args.k,
        "block_mib": args.block_mib,
        "peak_memory_grown_mib": grown_mib,
        "recall_at_1": scores(ranks).recall_at_1.value,
        "first_answers_that_agree": agree,
        "searched_rows_that_agree": same,
        "ratio_median": statistics.median(ratios),
        "search_ratio_median": statistics.median(searches),
        "pairs": pairs,
        "machine": {
            "cpu_count": os.cpu_count(),
            "machine": platform.machine(),
            "faiss": faiss.__version__,
        },
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(out, indent=1) + "\n")
    print(
        f"ours over faiss: {out['ratio_median']:.2f} of its time ({min(ratios):.2f} to "
        f"{max(ratios):.2f}), search {out['search_ratio_median']:.2f}; "
        f"peak memory +{grown_mib:.0f} MiB at a block of {args.block_mib:.0f}"
    )


if __name__ == "__main__":
    main()
