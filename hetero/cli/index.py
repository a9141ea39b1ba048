"""The index of a gallery: build, search, and what approximation costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import load_bundle, numbers, reporter, say, settings
from hetero.cli._options import Data, Json, Output, Quiet
from hetero.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    help="An index of the gallery, by an engine that exists: faiss, USearch, Milvus, pgvector.",
)

Spec = Annotated[
    str,
    typer.Argument(
        help="ENGINE:WHERE, such as exact:runs/index, hnsw:FOLDER, ivfpq:FOLDER, usearch:FOLDER, "
        "milvus:FILE.db#NAME, pgvector:ADDRESS#TABLE."
    ),
]
K = Annotated[int, typer.Option("-k", min=1, help="Rows to find for each query.")]


@app.command()
def build(
    spec: Spec,
    files: Annotated[list[Path], typer.Argument(help="Vectors, by `hetero embed`.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the engine, KEY=VALUE, for a new index."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Rows take the place of those of the same ids.")
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put stored vectors into an index, a new one or one that is there."""
    from hetero.stages import indexing

    done = indexing.build(spec, files, reporter(quiet), settings=settings(set_), replace=replace)
    value = {
        "index": spec,
        "rows": done.rows,
        "added": done.added,
        "space": done.space.id,
        "made": done.made,
        "seconds": round(done.seconds, 3),
    }
    kind = "made" if done.made else "there before"
    say(
        json_,
        value,
        f"{spec}: {done.rows:,} rows of space {done.space.id}, {done.added:,} of them from "
        f"{len(files)} file{'' if len(files) == 1 else 's'} in {done.seconds:.1f} s ({kind})",
    )


@app.command()
def search(
    spec: Spec,
    queries: Annotated[Path, typer.Argument(help="Vectors that ask, by `hetero embed`.")],
    k: K = 10,
    effort: Annotated[
        int, typer.Option(min=0, help="ef or nprobe of the engine; 0 for the index's own.")
    ] = 0,
    newer: Annotated[
        str, typer.Option(help="An index of re-embedded rows, which stand in for the old ones.")
    ] = "",
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle that made the queries, where its space holds the index's."),
    ] = None,
    newer_bundle: Annotated[
        Path | None, typer.Option(help="Gallery bundle that made the rows of --newer.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A JSON file for all that was found.")
    ] = None,
    json_: Json = False,
) -> None:
    """Find the nearest rows of each query."""
    from hetero._files import write_json
    from hetero.space import Embeddings
    from hetero.stages import indexing

    asked = Embeddings.load(queries)
    found = indexing.search(
        spec,
        asked,
        k,
        effort=effort,
        newer=newer,
        holds=load_bundle(bundle).nested if bundle else (),
        new_holds=load_bundle(newer_bundle).nested if newer_bundle else (),
    )
    value = {
        "index": spec,
        "newer": newer or None,
        "space": asked.space.id,
        "found": {
            name: [
                {"id": i, "cosine": round(float(s), 6)} for i, s in zip(line, scores, strict=False)
            ]
            for name, line, scores in zip(asked.ids, found.ids, found.scores, strict=True)
        },
    }
    if output is not None:
        write_json(output, value)
    lines = [
        "\n".join([name, *(f"{n:4}  {scores[n - 1]:.3f}  {i}" for n, i in enumerate(line, 1))])
        for name, line, scores in zip(asked.ids, found.ids, found.scores, strict=True)
    ]
    shown = lines[:10] + ([f"and {len(lines) - 10} more queries"] if len(lines) > 10 else [])
    say(json_, value, "\n".join(shown))


@app.command()
def recall(
    spec: Spec,
    queries: Annotated[
        list[Path], typer.Argument(help="Vectors that ask, a file for each query model.")
    ],
    exact: Annotated[str, typer.Option(help="An exact index of the same rows.")],
    k: K = 10,
    efforts: Annotated[str, typer.Option(help="ef or nprobe to try.")] = "8,16,32,64,128,256",
    repeats: Annotated[int, typer.Option(min=1, help="Of every timing.")] = 3,
    data: Data = "",
    output: Output = Path("runs/recall"),
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Hold an approximate index to an exact one: recall by query model and effort, with times."""
    from hetero import data as collections
    from hetero.space import Embeddings
    from hetero.stages import indexing

    tried = numbers("--efforts", efforts, "16,64,256")
    if any(e < 1 or e != int(e) for e in tried):
        raise ConfigError(f"--efforts {efforts!r}: write whole numbers from 1 on")
    images = collections.load(data) if data else None
    labels = dict(zip(images.ids, images.labels, strict=True)) if images else None
    done = indexing.recall(
        spec,
        exact,
        [Embeddings.load(path) for path in queries],
        output,
        reporter(quiet),
        k=k,
        efforts=[int(e) for e in tried],
        repeats=repeats,
        labels=labels,
    )
    by = "class" if done.clustered else "query"
    lines = [
        f"{done.rows:,} rows of space {done.space.id}; recall of the {k} nearest, percent, "
        f"95 % intervals resampled by {by}; ms a query"
    ]
    for curve in done.curves:
        lines.append(
            f"{curve.made_by}, {curve.queries:,} queries; exact search "
            f"{curve.ms(curve.exact_seconds):.3f} ms"
        )
        for p in curve.points:
            low, high = p.recall.ci or (p.recall.value, p.recall.value)
            less = ""
            if p.difference is not None:
                a, b = p.difference.ci or (p.difference.value, p.difference.value)
                less = (
                    f"   {100 * p.difference.value:+.1f} ({100 * a:+.1f} to {100 * b:+.1f}) "
                    "against the first model"
                )
            lines.append(
                f"  {done.effort_name or 'all'} {p.effort or '':<6} {100 * p.recall.value:6.1f} "
                f"({100 * low:.1f} to {100 * high:.1f}) {curve.ms(p.seconds):10.3f} ms{less}"
            )
    lines.append(f"curves: {output / 'recall.svg'}, {output / 'recall.json'}")
    say(json_, done.to_json(), "\n".join(lines))
