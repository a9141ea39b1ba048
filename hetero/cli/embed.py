"""``hetero embed``: vectors of a collection, in one file or, of any number, in a folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hetero._cores import cores
from hetero.cli._helpers import load_bundle, planned, reporter, say
from hetero.cli._options import Data, DryRun, Json, Quiet, SplitName
from hetero.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hetero.bundle import Bundle
    from hetero.data import Split
    from hetero.progress import Reporter
    from hetero.stages.bulk import BulkOptions


class Kept(StrEnum):
    """Number types that vectors are kept in."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


def embed(
    bundle: Annotated[Path | None, typer.Argument(help="Any bundle.")] = None,
    data: Data = "",
    split: Annotated[SplitName, typer.Option(help="Which pictures.")] = SplitName.all,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A .safetensors file; any other name is a folder of shards."
        ),
    ] = Path("embeddings.safetensors"),
    file: Annotated[str, typer.Option(help="Run this exported file instead of PyTorch.")] = "",
    format: Annotated[
        str, typer.Option("--format", "-f", help="Or the file of this format: onnx, ...")
    ] = "",
    precision: Annotated[
        str, typer.Option("--precision", "-p", help="And of this precision: fp32, int8, ...")
    ] = "",
    shard_rows: Annotated[int, typer.Option(help="Pictures of a shard.")] = 1000,
    store: Annotated[
        Kept, typer.Option(help="Number type of the vectors; what a smaller one costs is said.")
    ] = Kept.float32,
    sink: Annotated[str, typer.Option(help="Files of the shards: parquet, lance.")] = "parquet",
    engine: Annotated[str, typer.Option(help="Who runs them: local, ray.")] = "local",
    address: Annotated[
        str, typer.Option(help="Of a Ray cluster; without it Ray runs on this machine.")
    ] = "",
    workers: Annotated[
        int, typer.Option(help="Worker processes; -1 for one a core, 0 for this process alone.")
    ] = -1,
    decoders: Annotated[
        int, typer.Option(help="Threads of a worker that decode while its model runs.")
    ] = 1,
    verify: Annotated[
        Path | None,
        typer.Option(
            help="Prove that this folder holds each picture once; with --data, that they are "
            "still the same."
        ),
    ] = None,
    dry_run: DryRun = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the vectors of a collection, stamped with their space.

    Into a folder any number: killed at any moment, the same command goes on where it was.
    """
    if verify is not None:
        _verify(verify, data, json_)
        return
    if bundle is None:
        raise ConfigError("name a bundle: hetero embed BUNDLE --data PICTURES")
    made = load_bundle(bundle)
    chosen: Any = None if split is SplitName.all else split.value
    if dry_run:
        _plan(made, data, chosen, file or f"{format}{precision}", workers, output, json_)
        return
    if output.suffix == ".safetensors":
        _refuse_folder_options(file, format, precision, store, engine, address)
        _one_file(made, data, chosen, output, json_, reporter(quiet))
        return
    from hetero.stages import bulk, embedding

    options = bulk.BulkOptions(
        shard_rows=shard_rows,
        storage=store.value,
        sink=sink,
        engine=engine,
        address=address,
        workers=cores() if workers == -1 else workers,
        decoders=decoders,
    )
    item = bulk.file_of(made, file, format, precision)
    spec = embedding.source_of(data, made)
    said = reporter(quiet)
    into, account = bulk.embed_all(made, item, output, options, said, spec=spec, split=chosen)
    cost = _cost(made, item, spec, options, said)
    value = {
        "folder": str(output),
        "rows": account.rows,
        "skipped": account.skipped,
        "shards": account.shards,
        "space": into.job.space.id,
        "made_by": into.job.made_by,
        "storage": into.job.storage,
        **cost[0],
    }
    say(json_, value, f"{_line(output, account, into.job.space.id)}{cost[1]}")


def _plan(
    made: Bundle,
    spec: str,
    split: Split | None,
    by_file: str,
    workers: int,
    output: Path,
    as_json: bool,
) -> None:
    """Say what it would take; pictures are listed and some are read."""
    from hetero import data
    from hetero.stages import embedding, estimating

    one = output.suffix == ".safetensors"
    images = data.listed(embedding.source_of(spec, made))
    rows = images.rows(split) if split else tuple(range(len(images)))
    side = 1 if one else cores() if workers == -1 else workers
    planned(estimating.embedding(made, images, rows, side, by_file), as_json)


def _line(folder: Path, account: Any, space: str) -> str:
    return (
        f"{folder}: {account.rows} vectors of space {space} in {account.shards} shards, "
        f"{account.skipped} pictures skipped; each picture accounted for once"
    )


def _verify(folder: Path, spec: str, as_json: bool) -> None:
    """Print the account of a folder."""
    from hetero.sharded import Sharded
    from hetero.stages import bulk

    into = Sharded.open(folder)
    account = into.verify()
    if spec:
        bulk.same_pictures(into, spec)
    value = {
        "folder": str(folder),
        "rows": account.rows,
        "skipped": account.skipped,
        "shards": account.shards,
        "space": into.job.space.id,
        "pictures": "unchanged" if spec else "not looked at",
    }
    tail = "; the pictures are those that were embedded" if spec else ""
    say(as_json, value, f"{_line(folder, account, into.job.space.id)}{tail}")


def _refuse_folder_options(
    file: str, format: str, precision: str, store: Kept, engine: str, address: str
) -> None:
    given = {
        "--file": file,
        "--format": format,
        "--precision": precision,
        "--store": "" if store is Kept.float32 else store.value,
        "--engine": "" if engine == "local" else engine,
        "--address": address,
    }
    if named := [name for name, value in given.items() if value]:
        raise ConfigError(
            f"{named[0]} is for a folder of shards; name a folder with --output, not a .safetensors"
        )


def _one_file(
    made: Bundle,
    data: str,
    split: Split | None,
    output: Path,
    as_json: bool,
    said: Reporter,
) -> None:
    """All pictures in memory, the vectors by PyTorch into one file."""
    from hetero.stages import embedding

    images = embedding.load_images(data, made)
    vectors = embedding.embed_split(made, images, split, output, said)
    value = {
        "file": str(output),
        "rows": len(vectors),
        "space": vectors.space.id,
        "skipped": len(images.skipped),
    }
    say(as_json, value, f"{output}: {len(vectors)} vectors of space {vectors.space.id}")


def _cost(
    made: Bundle, item: Any, spec: str, options: BulkOptions, said: Reporter
) -> tuple[dict[str, Any], str]:
    """What the storage costs search, as JSON and as text; nothing for float32."""
    if options.storage == "float32":
        return {}, ""
    from dataclasses import asdict

    from hetero import data
    from hetero.stages import storing

    try:
        cost = storing.storage_cost(made, item, data.listed(spec), options.storage, said)
    except DataError as error:
        why = f"not measured: {error}"
        return {"storage_cost": why}, f"\n{options.storage}: what it costs search was {why}"
    return {"storage_cost": asdict(cost)}, f"\n{cost}"
