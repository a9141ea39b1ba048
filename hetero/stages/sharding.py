"""What a worker of a bulk job does: a shard of pictures in, a file and a line of the ledger out."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from hetero import data
from hetero._ledger import input_line
from hetero.bundle import Artifact, Bundle
from hetero.data import Images
from hetero.embedder import Embedder
from hetero.engines import Outcome
from hetero.errors import BundleError, DataError, HeteroError
from hetero.preprocess import Preprocess, decode
from hetero.sharded import Entry, Job, Left, Shard, Sharded
from hetero.storage import pack

#: Pictures a call of the model, as many as fit in `_BATCH_BYTES`: with more, what is between layers
#: does not stay in a processor's own memory, which was seen to halve the speed. A constant of the
#: format, since the last bits of a vector may depend on it.
_BATCH, _BATCH_BYTES = 256, 512 << 10

#: Pictures that are decoded ahead of the model, at least.
_AHEAD = 32

#: Files above this size are no pictures.
_MAX_FILE_BYTES = 512 << 20

#: SHA-256 of a picture's bytes, and the picture, or why there is none.
Read = tuple[str, UInt8[np.ndarray, "h w 3"] | str]

#: The same at a model's input size.
_Seen = tuple[str, UInt8[np.ndarray, "s s 3"] | str]


@contextmanager
def embedder_of(bundle: Bundle, item: Artifact | None) -> Iterator[Embedder]:
    """What embeds: the bundle's net in PyTorch, or one of its files by its runtime here.

    One thread, so that workers do not stand in each other's way and the last bits of a vector do
    not depend on how many cores there are.
    """
    if item is not None:
        from hetero.export import FileEmbedder

        with FileEmbedder(bundle, item) as opened:
            yield opened
        return
    import torch

    from hetero.models import TorchEmbedder

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield TorchEmbedder(bundle)
    finally:
        torch.set_num_threads(before)


def batch_of(preprocess: Preprocess) -> int:
    """Pictures a call of the model."""
    return max(1, min(_BATCH, _BATCH_BYTES // (3 * preprocess.size_px**2)))


@dataclass(frozen=True)
class BulkWork:
    """A job as a worker gets it: see `hetero.engines.Work`.

    Attributes:
        folder: The output folder, absolute.
        job: What it holds.
        bundle: The bundle's folder, absolute.
        file: The model file's name in it; "" for PyTorch.
        root: What ids are relative to, absolute; "" where the collection reads them by row.
        decoders: See `BulkOptions`.
        images: The collection itself, where it has no name to be loaded by; engines whose workers
            are other processes cannot take it along.
    """

    folder: str
    job: Job
    bundle: str
    file: str
    root: str
    decoders: int
    images: Images | None = field(default=None, compare=False)

    @contextmanager
    def open(self) -> Iterator[Callable[[Shard], Outcome]]:
        """See `hetero.engines.Work`: what does a shard."""
        with ExitStack() as stack:
            try:
                do = stack.enter_context(self._opened())
            except HeteroError as error:
                refusal = error
                yield lambda shard: _failed(shard, refusal)
                return
            yield do

    @contextmanager
    def _opened(self) -> Iterator[Callable[[Shard], Outcome]]:
        job = self.job
        bundle = Bundle.load(Path(self.bundle), verify=False)
        item = next((f for f in bundle.exported() if f.path == self.file), None)
        into = Sharded(Path(self.folder), job)
        with ExitStack() as stack:
            pool = ThreadPoolExecutor(self.decoders) if self.decoders else None
            if pool:
                stack.enter_context(pool)
            embedder = stack.enter_context(embedder_of(bundle, item))
            digest = item.sha256 if item else bundle.digest
            if (bundle.digest, digest, embedder.name) != (
                job.bundle_sha256,
                job.model_sha256,
                job.made_by,
            ):
                raise BundleError(
                    f"{bundle.root}: this worker has {embedder.name}, {digest[:12]}…; the job was "
                    f"begun with {job.made_by}, {job.model_sha256[:12]}…"
                )
            read = self.reader()

            def do(shard: Shard) -> Outcome:
                try:
                    line = _embed(shard, read, bundle.preprocess, embedder, pool, into)
                except HeteroError as error:
                    return _failed(shard, error)
                return Outcome(shard.number, line.rows, len(line.skipped))

            yield do

    def reader(self) -> Callable[[int, str], Read]:
        """(Row, id) to the bytes that were hashed and the picture in them."""
        if self.root:
            root = Path(self.root)
            return lambda row, i: _from_file(root / i)
        images = self.images or data.listed(self.job.data, self.job.seed)
        return lambda row, i: _from_collection(images, row, i)


def _from_file(path: Path) -> Read:
    try:
        if (size := path.stat().st_size) > _MAX_FILE_BYTES:
            return "", f"{size} bytes are more than the {_MAX_FILE_BYTES} that are read"
        raw = path.read_bytes()
    except OSError as error:
        return "", f"cannot be read ({error.strerror})"
    found = hashlib.sha256(raw).hexdigest()
    try:
        return found, decode(raw)
    except DataError as error:
        return found, str(error).removeprefix(f"{len(raw)} bytes: ")


def _from_collection(images: Images, row: int, i: str) -> Read:
    if not row < len(images) or images.ids[row] != i:
        raise DataError(f"{images.name}: row {row} is no longer {i!r}; the collection was changed")
    try:
        rgb = images.read(row)
    except DataError as error:
        return "", str(error)
    return hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).hexdigest(), rgb


def _failed(shard: Shard, error: HeteroError) -> Outcome:
    return Outcome(shard.number, failed=str(error), exit_code=error.exit_code)


def _embed(
    shard: Shard,
    read: Callable[[int, str], Read],
    preprocess: Preprocess,
    embedder: Embedder,
    pool: ThreadPoolExecutor | None,
    into: Sharded,
) -> Entry:
    """A shard decoded, embedded and written; pictures are decoded while the model runs."""

    def one(row: int, i: str) -> _Seen:
        found, rgb = read(row, i)
        return found, rgb if isinstance(rgb, str) else preprocess.pixels(rgb)

    batch = batch_of(preprocess)
    hashed, skipped = hashlib.sha256(), list[Left]()
    parts: list[Float[np.ndarray, "n d"]] = []
    waiting: list[tuple[int, UInt8[np.ndarray, "s s 3"]]] = []

    def flush() -> None:
        rows, left = _vectors(embedder, shard, waiting)
        parts.append(rows)
        skipped.extend(left)
        waiting.clear()

    items = list(zip(shard.rows, shard.ids, strict=True))
    for at, (found, pixels) in enumerate(_ahead(pool, one, items, max(_AHEAD, 2 * batch))):
        hashed.update(input_line(shard.ids[at], found))
        if isinstance(pixels, str):
            skipped.append(Left(at=at, id=shard.ids[at], reason=pixels[:500]))
            continue
        waiting.append((at, pixels))
        if len(waiting) == batch:
            flush()
    if waiting:
        flush()
    rows = np.concatenate(parts) if parts else np.empty((0, embedder.space.dim), np.float32)
    left = tuple(sorted(skipped, key=lambda item: item.at))
    line = {"inputs_sha256": hashed.hexdigest(), "skipped": left}
    return into.write(shard, pack(rows, into.job.storage), line)


def _ahead(
    pool: ThreadPoolExecutor | None,
    one: Callable[[int, str], _Seen],
    items: list[tuple[int, str]],
    most: int,
) -> Iterator[_Seen]:
    """`one` of every item, in order, by the pool, which is never more than `most` ahead."""
    if pool is None:
        yield from (one(row, i) for row, i in items)
        return
    under_way: deque[Future[_Seen]] = deque()
    try:
        for row, i in items:
            under_way.append(pool.submit(one, row, i))
            if len(under_way) == most:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


def _vectors(
    embedder: Embedder, shard: Shard, batch: list[tuple[int, UInt8[np.ndarray, "s s 3"]]]
) -> tuple[Float[np.ndarray, "n d"], list[Left]]:
    """The vectors of a batch, and the pictures of which the model makes none.

    Raises:
        DataError: It makes none of any: then it is not the pictures' fault.
    """
    ids = [shard.ids[at] for at, _ in batch]
    pixels = np.stack([p for _, p in batch])
    try:
        return np.asarray(embedder.embed(ids, pixels).vectors), []
    except DataError as whole:
        rows, left = list[Float[np.ndarray, "1 d"]](), list[Left]()
        for n, (at, _) in enumerate(batch):
            try:
                rows.append(np.asarray(embedder.embed(ids[n : n + 1], pixels[n : n + 1]).vectors))
            except DataError as error:
                left.append(Left(at=at, id=ids[n], reason=str(error)[:500]))
        if not rows:
            raise whole
        return np.concatenate(rows), left
