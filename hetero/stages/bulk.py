"""Stage: vectors of any number of pictures, in shards, by an engine, killable anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from hetero import engines, sinks
from hetero._ledger import input_line
from hetero.bundle import Artifact, Bundle
from hetero.data import Images, Split
from hetero.data._listing import Listing, listing, of_images
from hetero.engines import Outcome
from hetero.errors import BundleError, ConfigError, DataError, HeteroError
from hetero.progress import Reporter
from hetero.sharded import Account, Job, Shard, Sharded, ids_digest
from hetero.stages.sharding import BulkWork, embedder_of
from hetero.storage import Storage


@dataclass(frozen=True)
class BulkOptions:
    """How a collection is embedded.

    Attributes:
        shard_rows: Pictures of a shard: what is lost at most, for each worker, when all is killed.
        storage: See `hetero.storage`.
        sink: See `hetero.sinks`.
        engine: See `hetero.engines`.
        address: Of a cluster.
        workers: Processes, or actors.
        decoders: Threads of each worker that decode ahead of the model; 0 for none.
    """

    shard_rows: int = 1000
    storage: Storage = "float32"
    sink: str = "parquet"
    engine: str = "local"
    address: str = ""
    workers: int = 1
    decoders: int = 1

    def __post_init__(self) -> None:
        for name, least in (("shard_rows", 1), ("workers", 0), ("decoders", 0)):
            if (value := getattr(self, name)) < least:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} must be at least {least}, got {value}")


def file_of(
    bundle: Bundle, file: str = "", format: str = "", precision: str = ""
) -> Artifact | None:
    """The exported file that is named, or None for PyTorch where nothing is.

    Args:
        bundle: Whose.
        file: Its name in the bundle, or its path.
        format: See `hetero.export.formats`.
        precision: "fp32", "fp16", "int8", ...

    Raises:
        ConfigError: There is none, or more than one.
    """
    if not (file or format or precision):
        return None
    found = [
        f
        for f in bundle.exported()
        if (not file or file == f.path or Path(file).resolve() == bundle.path(f).resolve())
        and (not format or f.kind == format)
        and (not precision or f.precision == precision)
    ]
    if len(found) != 1:
        wanted = " ".join(filter(None, (file, format, precision)))
        have = ", ".join(f.path for f in bundle.exported()) or "none; `hetero export` writes them"
        raise ConfigError(
            f"{bundle.root}: {len(found) or 'no'} exported files are {wanted}, one is needed; "
            f"there are: {have}"
        )
    return found[0]


def job_of(
    bundle: Bundle,
    item: Artifact | None,
    pictures: Listing,
    options: BulkOptions,
    spec: str,
    split: Split | None,
    seed: int,
) -> Job:
    """What is to be done; the pictures are listed once for it.

    Raises:
        DataError: There is no picture.
    """
    rows, ids_sha256 = ids_digest(i for _, i in pictures.rows())
    if not rows:
        why = f"; {len(pictures.skipped)} files were passed over" if pictures.skipped else ""
        raise DataError(f"{pictures.name}: no picture{why}")
    with embedder_of(bundle, item) as embedder:
        made_by = embedder.name
    return Job(
        space_name=bundle.space.name,
        space_digest=bundle.space.digest,
        dim=bundle.space.dim,
        bundle_sha256=bundle.digest,
        preprocess_sha256=bundle.preprocess.sha256,
        model=f"{item.kind} {item.precision}" if item else "pytorch",
        model_sha256=item.sha256 if item else bundle.digest,
        made_by=made_by,
        data=spec,
        split=split or "",
        seed=seed,
        rows=rows,
        ids_sha256=ids_sha256,
        shard_rows=options.shard_rows,
        storage=options.storage,
        sink=options.sink,
    )


def shards_of(pictures: Listing, shard_rows: int) -> Iterator[Shard]:
    """The pictures, so many at a time."""
    rows: list[tuple[int, str]] = []
    number = 0
    for row in pictures.rows():
        rows.append(row)
        if len(rows) == shard_rows:
            yield Shard(number, *zip(*rows, strict=True))
            number, rows = number + 1, []
    if rows:
        yield Shard(number, *zip(*rows, strict=True))


def embed_all(
    bundle: Bundle,
    item: Artifact | None,
    output: Path,
    options: BulkOptions,
    reporter: Reporter,
    *,
    spec: str = "",
    images: Images | None = None,
    split: Split | None = None,
    seed: int = 0,
) -> tuple[Sharded, Account]:
    """Every picture embedded into a folder of shards; what is there already is verified and kept.

    Args:
        bundle: Whose model.
        item: Its exported file, or None for PyTorch.
        output: The folder.
        options: How.
        reporter: Where to say how far it is.
        spec: The pictures, as on a command line.
        images: Or a collection in memory; its workers are in this process.
        split: Only this split.
        seed: Of the split, where the source makes one.

    Returns:
        The folder, and its account.

    Raises:
        ConfigError: The folder was begun as another job.
        HeteroError: Whatever made a worker give up.
    """
    sinks.module(options.sink)
    engine = engines.module(options.engine)
    if images is not None and (options.workers or options.engine != "local"):
        raise ConfigError("a collection in memory is embedded in this process: workers=0")
    pictures = of_images(images, split) if images else listing(spec, split, seed)
    job = job_of(bundle, item, pictures, options, spec, split, seed)
    into = Sharded.begin(output, job)
    with into.writing():
        done = [_is_done(into, number) for number in range(job.shards)]
        kept = sum(done)
        if kept:
            reporter.line(f"{output}: {kept} of {job.shards} shards are there, verified")
        work = BulkWork(
            folder=str(output.resolve()),
            job=into.job,
            bundle=str(bundle.root.resolve()),
            file=item.path if item else "",
            root=str(pictures.root.resolve()) if pictures.root else "",
            decoders=options.decoders,
            images=images,
        )
        todo = (s for s in shards_of(pictures, job.shard_rows) if not done[s.number])
        with reporter.bar("embed", job.rows, min(kept * job.shard_rows, job.rows)) as bar:
            if kept < job.shards:
                run = engine.run(work, todo, options.workers, options.address)
                for outcome in run:
                    if outcome.failed:
                        raise _Gave(outcome)
                    bar.advance(outcome.rows + outcome.skipped)
    return into, into.verify()


class _Gave(HeteroError):
    """A worker's own error, on this side."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.failed)
        self.exit_code = outcome.exit_code


def _is_done(into: Sharded, number: int) -> bool:
    """Whether a shard is there and whole."""
    if not into.line(number).exists():
        return False
    try:
        into.entry(number)
    except BundleError:
        return False
    return True


def same_pictures(into: Sharded, spec: str) -> None:
    """Nothing, if the pictures are still those that were embedded, byte for byte.

    Raises:
        DataError: One was changed, added or removed; the message names its shard.
    """
    job = into.job
    split = cast("Split | None", job.split or None)
    pictures = listing(spec or job.data, split, job.seed)
    if ids_digest(i for _, i in pictures.rows()) != (job.rows, job.ids_sha256):
        raise DataError(f"{pictures.name}: pictures were added or removed since they were embedded")
    root = str(pictures.root.resolve()) if pictures.root else ""
    read = BulkWork(str(into.root), job, "", "", root, 0).reader()
    for shard in shards_of(pictures, job.shard_rows):
        hashed = hashlib.sha256()
        for row, i in zip(shard.rows, shard.ids, strict=True):
            hashed.update(input_line(i, read(row, i)[0]))
        if hashed.hexdigest() != into.entry(shard.number).inputs_sha256:
            raise DataError(
                f"{pictures.name}: a picture of shard {shard.number} ({shard.ids[0]!r} to "
                f"{shard.ids[-1]!r}) was changed since it was embedded"
            )
