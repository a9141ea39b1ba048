"""Bulk embedding: nothing lost, nothing twice, the same vectors whoever makes them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="bundles are trained for these tests; needs the extra 'train'")
pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")

import exporting
import toys

import hetero
from hetero import cli, data, engines, sinks
from hetero.data._listing import listing
from hetero.errors import BundleError, ConfigError, DataError, DeviceError
from hetero.sharded import Sharded, ids_digest
from hetero.stages import bulk, embedding
from hetero.storage import pack, stored

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bundle() -> hetero.Bundle:
    return exporting.exported("onnx", ("fp32",))[0]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Class folders of 150 JPEGs of emoji; three files in them are no pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    images = data.load("emoji")
    for row in images.rows("test")[:147]:
        code, vendor = images.ids[row].split("/")[1:]
        path = folder / code / f"{vendor}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(images.read(row)).save(path, quality=90)
    first, second, third = sorted(p for p in folder.iterdir())[:3]
    whole = next(first.glob("*.jpg")).read_bytes()
    (first / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (second / "empty.jpg").write_bytes(b"")
    (third / "notes.txt").write_text("no picture")
    return folder


def embed(bundle, where, out, *, spec="", item="onnx", **options):
    made = bulk.file_of(bundle, format=item)
    options = {"shard_rows": 20, "workers": 0, **options}
    return bulk.embed_all(
        bundle, made, out, bulk.BulkOptions(**options), toys.quiet(), spec=spec or str(where)
    )


@pytest.fixture(scope="module")
def done(bundle, pictures, tmp_path_factory) -> Path:
    """The pictures embedded by nobody disturbed; never written to again."""
    out = tmp_path_factory.mktemp("bulk") / "done"
    embed(bundle, pictures, out)
    return out


@pytest.fixture
def begun(done, tmp_path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(done, tmp_path / "begun"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder of shards, by its path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


# -- what comes out -------------------------------------------------------------------------------


def test_streamed_vectors_are_those_of_the_command_in_memory_bit_for_bit(bundle, tmp_path):
    # Batches of 256 on both sides, PyTorch on both sides.
    images = data.load("emoji")
    whole = embedding.embed_split(bundle, images, "val", tmp_path / "v.safetensors", toys.quiet())
    into, account = bulk.embed_all(
        bundle, None, tmp_path / "v", bulk.BulkOptions(shard_rows=2048, workers=0, decoders=2),
        toys.quiet(), spec="emoji", split="val",
    )  # fmt: skip
    found = into.load()
    assert (found.ids, found.made_by) == (whole.ids, whole.made_by)
    assert found.space.same_as(whole.space)
    assert account.rows == len(whole) > 256
    assert np.array_equal(found.vectors, whole.vectors)


def test_other_batches_change_the_last_bits_only(bundle, done, pictures, tmp_path):
    into, _ = embed(bundle, pictures, tmp_path / "seven", shard_rows=7)
    found, reference = into.load(), Sharded.open(done).load()
    assert found.ids == reference.ids
    assert np.abs(found.vectors - reference.vectors).max() < 1e-6


def test_the_vectors_are_those_of_the_file_for_each_picture(bundle, done, pictures):
    from hetero.export import FileEmbedder
    from hetero.preprocess import decode

    found = Sharded.open(done).load()
    picked = found.ids[::29]
    pixels = np.stack([bundle.preprocess.pixels(decode(pictures / i)) for i in picked])
    with FileEmbedder(bundle, bulk.file_of(bundle, format="onnx")) as embedder:
        expected = embedder.embed(picked, pixels)
    assert np.abs(found.take(picked).vectors - expected.vectors).max() < 1e-6


def test_a_broken_picture_is_skipped_with_its_reason_and_stops_nobody(done, pictures):
    into = Sharded.open(done)
    lines = [json.loads(into.line(n).read_text()) for n in range(into.job.shards)]
    left = {Path(x["id"]).name: x["reason"] for line in lines for x in line["skipped"]}
    assert set(left) == {"torn.jpg", "empty.jpg", "notes.txt"}
    assert "cannot be decoded" in left["torn.jpg"]
    assert left["empty.jpg"] == "the file is empty"
    assert left["notes.txt"] == "not a picture that can be read"
    assert sum(line["rows"] for line in lines) == 147


def test_the_ledger_says_from_what_and_by_what_each_shard_was_made(bundle, done, pictures):
    into = Sharded.open(done)
    ids = sorted(p.relative_to(pictures).as_posix() for p in pictures.rglob("*") if p.is_file())
    for number in range(into.job.shards):
        line = json.loads(into.line(number).read_text())
        some = ids[20 * number : 20 * (number + 1)]
        text = "".join(
            f"{i}\0{hashlib.sha256((pictures / i).read_bytes()).hexdigest()}\n" for i in some
        )
        assert line["inputs_sha256"] == hashlib.sha256(text.encode()).hexdigest()
        raw = (done / "shards" / line["output"]).read_bytes()
        assert line["output_sha256"] == hashlib.sha256(raw).hexdigest()
        assert line["space_digest"] == bundle.space.digest
        assert line["bundle_sha256"] == bundle.digest
        assert line["model_sha256"] == bulk.file_of(bundle, format="onnx").sha256


def test_parquet_files_say_whose_vectors_they_are_to_any_reader(bundle, done):
    from pyarrow import parquet

    table = parquet.read_table(done / "shards" / "000001.parquet")
    assert str(table.schema.field("vector").type).startswith("fixed_size_list<")
    texts = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert texts["hetero.space_digest"] == bundle.space.digest
    assert texts["hetero.made_by"].startswith("onnx fp32 by onnxruntime")
    assert texts["hetero.storage"] == "float32"


def test_a_folder_is_read_shard_by_shard_or_as_embeddings(done):
    into = Sharded.open(done)
    parts = list(into)
    assert len(parts) == into.job.shards == 8
    assert sum(len(p) for p in parts) == 147
    whole = hetero.Embeddings.load(done)
    assert whole.ids == tuple(i for p in parts for i in p.ids)


@pytest.mark.parametrize("sink", ["parquet", "lance"])
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8])
def test_a_sink_gives_back_what_it_was_given_and_the_same_bytes_again(sink, kind, tmp_path):
    module = sinks.module(sink)
    if sink == "lance":
        pytest.importorskip("lance", reason="needs the extra 'lance'")
    rows = (np.random.default_rng(0).normal(size=(50, 8)) * 40).astype(kind)
    for ids, some in ((tuple(f"ü/{n}" for n in range(50)), rows), ((), rows[:0])):
        raw = module.encode(ids, some, {"hetero.x": "é"})
        path = tmp_path / f"x{module.SUFFIX}"
        path.write_bytes(raw)
        back = module.decode(path)
        assert back[0] == ids
        assert back[1].dtype == kind
        assert np.array_equal(back[1], some)
        assert back[2]["hetero.x"] == "é"
        assert module.encode(ids, some, {"hetero.x": "é"}) == raw
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(BundleError, match=r"cannot be read"):
        module.decode(path)


def test_lance_shards_hold_the_same_vectors(bundle, done, pictures, tmp_path):
    pytest.importorskip("lance", reason="needs the extra 'lance'")
    into, _ = embed(bundle, pictures, tmp_path / "lance", sink="lance")
    found, reference = into.load(), Sharded.open(done).load()
    assert found.ids == reference.ids
    assert np.array_equal(found.vectors, reference.vectors)


# -- which pictures, in which order ---------------------------------------------------------------


def test_a_folder_is_listed_in_the_order_of_its_paths(tmp_path):
    # "-" and "." sort before "/", which is where a walk by names alone goes wrong.
    for name in ("a/1.jpg", "a-b/1.jpg", "a.jpg", "a/b/2.jpg", "a/b.jpg", "ab/1.jpg", "Z.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "ab" / "back").symlink_to(tmp_path)
    (tmp_path / "twice").symlink_to(tmp_path / "a")
    found = listing(f"unlabelled:{tmp_path}")
    ids = [i for _, i in found.rows()]
    assert ids == sorted(ids)
    assert len(ids) == 7
    assert {s.path for s in found.skipped} == {".hidden", "ab/back", "twice"}
    assert [i for _, i in found.rows()] == ids
    assert len(found.skipped) == 3


def test_a_manifest_and_a_folder_list_the_same_pictures(pictures, tmp_path):
    names = sorted(p.relative_to(pictures).as_posix() for p in pictures.rglob("*.jpg"))
    rows = "".join(f"{pictures / n},{n.split('/')[0]}\n" for n in names)
    table = tmp_path / "list.csv"
    table.write_text("path,label\n" + rows)
    found = listing(str(table))
    assert [Path(i).relative_to(pictures).as_posix() for _, i in found.rows()] == names


# -- killed, torn, spoilt -------------------------------------------------------------------------


def test_a_file_torn_at_any_byte_is_found_and_made_again(bundle, begun, done, pictures):
    rng = np.random.default_rng(0)
    for kind in ("shards", "ledger"):
        for path in sorted((begun / kind).iterdir())[:3]:
            raw = path.read_bytes()
            path.write_bytes(raw[: rng.integers(len(raw))])
    with pytest.raises(BundleError):
        Sharded.open(begun).verify()
    _, account = embed(bundle, pictures, begun)
    assert (account.rows, account.skipped) == (147, 3)
    assert contents(begun) == contents(done)


def test_one_flipped_bit_in_a_shard_is_found(begun):
    path = begun / "shards" / "000002.parquet"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleError, match=r"000002\.parquet: torn or altered"):
        Sharded.open(begun).verify()


def test_what_is_done_is_not_done_again(bundle, begun, pictures):
    (begun / "ledger" / "000003.json").unlink()
    before = {p.name: p.stat().st_mtime_ns for p in (begun / "ledger").iterdir()}
    embed(bundle, pictures, begun)
    after = {p.name: p.stat().st_mtime_ns for p in (begun / "ledger").iterdir()}
    assert {n for n in after if after[n] != before.get(n)} == {"000003.json"}


@pytest.mark.parametrize("fault", ["lost", "doubled", "moved"])
def test_a_ledger_that_agrees_with_its_files_but_not_with_the_pictures_is_found(begun, fault):
    # Whole and consistent shards, of which one row was lost, doubled or moved to its neighbour.
    into = Sharded.open(begun)
    lines = [json.loads(into.line(n).read_text()) for n in range(into.job.shards)]
    ids, rows, texts = into.sink.decode(into.path(3))
    if fault == "lost":
        ids, rows = ids[:-1], rows[:-1]
    elif fault == "doubled":
        more, other, _ = into.sink.decode(into.path(4))
        ids, rows = (*ids, more[0]), np.concatenate([rows, other[:1]])
    else:
        ids = (ids[1], ids[0], *ids[2:])
    raw = into.sink.encode(ids, rows, texts)
    into.path(3).write_bytes(raw)
    lines[3] |= {"rows": len(ids), "output_sha256": hashlib.sha256(raw).hexdigest()}
    into.line(3).write_text(json.dumps(lines[3]))
    with pytest.raises(BundleError, match="do not agree"):
        into.verify()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shard_rows": 30}, "--shard-rows 20, now it is 30"),
        ({"storage": "int8"}, "--store 'float32', now it is 'int8'"),
        ({"item": ""}, "model 'onnx fp32', now it is 'pytorch'"),
        ({"spec": "emoji"}, "number of pictures"),
    ],
)
def test_another_job_is_refused_and_leaves_the_folder_as_it_was(
    bundle, begun, pictures, change, said
):
    before = contents(begun)
    with pytest.raises(ConfigError, match=said):
        embed(bundle, pictures, begun, **change)
    assert contents(begun) == before


def test_another_bundle_is_refused(bundle, begun, pictures, tmp_path):
    from hetero import models

    net = models.build("resnet:width=4", exporting.DIM, exporting.SIZE).eval()
    pixels = exporting.calibration()[:8]
    other = models.as_it_is(
        tmp_path / "other", net, "resnet:width=4", bundle.space, bundle.preprocess, pixels
    )
    with pytest.raises(ConfigError, match=r"begun with the weights .* give another --output"):
        embed(other, pictures, begun, item="")


def test_a_folder_with_other_things_in_it_is_refused(bundle, pictures, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        embed(bundle, pictures, tmp_path)


def test_a_second_run_into_the_same_folder_is_refused_while_the_first_writes(begun):
    with Sharded.open(begun).writing(), pytest.raises(ConfigError, match="another run"):  # noqa: SIM117
        with Sharded.open(begun).writing():
            pass


def test_changed_pictures_are_found(bundle, done, pictures, tmp_path):
    into = Sharded.open(done)
    bulk.same_pictures(into, str(pictures))
    copy = Path(shutil.copytree(pictures, tmp_path / "copy"))
    bulk.same_pictures(into, str(copy))
    some = sorted(copy.rglob("*.jpg"))[45]
    some.write_bytes(some.read_bytes() + b"\0")
    with pytest.raises(DataError, match="a picture of shard 2 "):
        bulk.same_pictures(into, str(copy))
    some.unlink()
    with pytest.raises(DataError, match="added or removed"):
        bulk.same_pictures(into, str(copy))


def test_a_picture_without_a_vector_is_skipped_but_a_broken_model_stops_all(bundle, tmp_path):
    from hetero.stages import sharding

    class Blind:
        name, space = "blind", bundle.space

        def __init__(self, dark: int) -> None:
            self.dark = dark

        def embed(self, ids, pixels):
            rows = np.eye(len(ids), self.space.dim) + 1.0
            rows[pixels[:, 0, 0, 0] < self.dark] = 0
            return hetero.Embeddings.normalised(self.space, ids, rows, self.name)

    shard = hetero.sharded.Shard(0, (0, 1, 2), ("a", "b", "c"))
    batch = [(n, np.full((8, 8, 3), n, np.uint8)) for n in range(3)]
    rows, left = sharding._vectors(Blind(1), shard, batch)
    assert (len(rows), [x.id for x in left]) == (2, ["a"])
    assert "zero" in left[0].reason
    with pytest.raises(DataError, match="zero"):
        sharding._vectors(Blind(9), shard, batch)


# -- workers --------------------------------------------------------------------------------------


class Fatal:
    """Work whose worker dies at some shards, so many times each."""

    def __init__(self, folder: Path, deaths: dict[int, int]) -> None:
        self.folder, self.deaths = folder, deaths

    def open(self):
        import contextlib

        def do(shard):
            for n in range(self.deaths.get(shard.number, 0)):
                mark = self.folder / f"{shard.number}-{n}"
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            return engines.Outcome(shard.number, rows=len(shard.ids))

        return contextlib.nullcontext(do)


def shards(count: int):
    return (hetero.sharded.Shard(n, (n,), (str(n),)) for n in range(count))


def test_a_worker_that_dies_costs_no_shard(tmp_path):
    run = engines.module("local").run
    found = [o.shard for o in run(Fatal(tmp_path, {0: 1, 5: 2}), shards(9), 2)]
    assert set(found) == set(range(9))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_shard_that_kills_every_worker_ends_the_job_with_a_reason(tmp_path):
    run = engines.module("local").run
    with pytest.raises(DeviceError, match=r"workers died 5 times at the shards 0"):
        list(run(Fatal(tmp_path, {0: 99}), shards(1), 1))


def test_two_workers_write_what_one_process_writes(bundle, done, pictures, tmp_path):
    embed(bundle, pictures, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(done)


def test_a_worker_with_another_model_is_told_from_the_jobs(bundle, done, pictures, tmp_path):
    from hetero.stages.sharding import BulkWork

    job = Sharded.open(done).job.model_copy(update={"made_by": "onnx fp32 by onnxruntime 0.1"})
    work = BulkWork(str(tmp_path), job, str(bundle.root), "model.fp32.onnx", str(pictures), 0)
    with work.open() as do:
        outcome = do(hetero.sharded.Shard(0, (0,), ("x",)))
    assert "onnxruntime 0.1" in outcome.failed
    assert outcome.exit_code == 2


def hetero_embed(bundle, pictures, *words):
    from benchmarks.bulk.interrupt import embed_command

    return embed_command(
        bundle.root, str(pictures), "--format", "onnx", "--shard-rows", "20", *words
    )


@pytest.mark.slow
def test_killed_at_random_again_and_again_nothing_is_lost_and_nothing_is_there_twice(
    bundle, done, pictures, tmp_path
):
    pytest.importorskip("psutil", reason="finds the workers to kill")
    interrupt = pytest.importorskip("benchmarks.bulk.interrupt", reason="needs a checkout")
    tally = interrupt.interrupt(
        hetero_embed(bundle, pictures, "--workers", "2"), tmp_path / "out", done, 8, 0, 4.0
    )
    assert sum(tally.kills.values()) == 8
    assert tally.ends >= tally.resumed >= 1
    assert (tally.differences, tally.wrong_exits, tally.orphans) == ([], [], 0)


def test_the_harness_sees_a_lost_and_a_changed_file(begun, done):
    interrupt = pytest.importorskip("benchmarks.bulk.interrupt", reason="needs a checkout")
    assert interrupt.differences(begun, done) == []
    (begun / "shards" / "000001.parquet").write_bytes(b"")
    (begun / "ledger" / "000002.json").unlink()
    assert interrupt.differences(begun, done) == [
        "shards/000001.parquet differs",
        "ledger/000002.json is only in one",
    ]


@pytest.mark.slow
def test_ray_gives_the_local_engines_files_though_one_of_its_workers_is_killed(
    bundle, done, pictures, tmp_path
):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed; needs the extra 'ray'")
    psutil = pytest.importorskip("psutil", reason="finds the worker to kill")
    embed(bundle, pictures, tmp_path / "local", shard_rows=5)
    out = tmp_path / "ray"
    words = ("--shard-rows", "5", "--engine", "ray", "--workers", "2", "-o", str(out))
    run = subprocess.Popen(
        hetero_embed(bundle, pictures, *words),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    done_then: list[int] = []

    def kill_one() -> None:
        while run.poll() is None and not done_then:
            lines = len(list((out / "ledger").glob("*.json"))) if out.exists() else 0
            found = psutil.Process(run.pid).children(recursive=True) if lines else []
            if actors := [p for p in found if "MapWorker" in "".join(p.cmdline())]:
                actors[0].kill()
                done_then.append(lines)
            time.sleep(0.002)

    killer = threading.Thread(target=kill_one)
    killer.start()
    said = run.communicate()
    killer.join()
    assert run.returncode == 0, said
    assert 0 < done_then[0] < 30, "the kill came too late"
    assert contents(out) == contents(tmp_path / "local")


# -- storage --------------------------------------------------------------------------------------


def test_int8_keeps_each_row_within_half_a_step_of_its_own_scale(done):
    vectors = np.asarray(Sharded.open(done).load().vectors)
    packed = pack(vectors, "int8")
    scale = np.abs(vectors).max(axis=1, keepdims=True) / 127
    assert packed.dtype == np.int8
    assert np.abs(packed).max(axis=1).min() == 127
    assert np.all(np.abs(packed * scale - vectors) <= scale * 0.5001)


@pytest.mark.parametrize(("storage", "size"), [("float16", 2), ("int8", 1)])
def test_smaller_storage_gives_unit_rows_again_and_takes_less_room(
    bundle, done, pictures, tmp_path, storage, size
):
    into, _ = embed(bundle, pictures, tmp_path / storage, storage=storage)
    found, reference = into.load(), Sharded.open(done).load()
    assert into.sink.decode(into.path(0))[1].dtype.itemsize == size
    expected = stored(reference, storage)
    assert np.array_equal(found.vectors, expected.vectors)
    assert np.allclose(np.linalg.norm(found.vectors.astype(np.float64), axis=1), 1, atol=1e-6)
    alike = np.einsum("nd,nd->n", found.vectors, reference.vectors)
    assert alike.min() > (0.9999 if storage == "int8" else 0.999999)


def test_the_cost_of_a_storage_is_what_search_loses(bundle):
    # An independent count: first answers of float32 and of kept vectors, other designs only.
    from hetero.stages import storing

    images = data.load("emoji")
    cost = storing.storage_cost(bundle, None, images, "int8", toys.quiet(), most=120)
    some, pixels = storing._sample(images, bundle, 120, toys.quiet())
    assert cost.queries <= len(some) <= 120
    whole = embedding.embed(bundle, some.ids, np.stack(pixels), toys.quiet())

    def right(rows: np.ndarray) -> np.ndarray:
        scores = rows.astype(np.float64) @ rows.T.astype(np.float64)
        groups = np.asarray(some.groups)
        scores[groups[:, None] == groups[None]] = -9
        labels = np.asarray(some.labels)
        return labels[scores.argmax(1)] == labels

    before = right(whole.vectors)
    kept = np.rint(whole.vectors * 127 / np.abs(whole.vectors).max(1, keepdims=True))
    after = right(kept / np.linalg.norm(kept, axis=1, keepdims=True))
    assert cost.queries == len(some)
    assert cost.recall_at_1.value == pytest.approx(before.mean())
    assert cost.kept_recall_at_1.value == pytest.approx(after.mean())
    assert cost.lost.value == pytest.approx(before.mean() - after.mean())
    assert cost.negative_flips == pytest.approx((before & ~after).mean())
    assert cost.lost_at_most > cost.lost.value
    assert "Recall@1" in str(cost)


# -- the command ----------------------------------------------------------------------------------


def command(monkeypatch, capsys, *words) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["hetero", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_command_embeds_verifies_and_says_what_storage_costs(
    bundle, pictures, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "vectors"
    words = ("embed", bundle.root, "-d", pictures, "-o", out, "--file", "model.fp32.onnx", "-q")
    code, said, err = command(monkeypatch, capsys, *words, "--workers", 0, "--store", "float16")
    assert code == 0, err
    assert "147 vectors" in said
    assert "3 pictures skipped" in said
    assert "points lost" in said or "not measured" in said
    code, said, _ = command(monkeypatch, capsys, "embed", "--verify", out, "-d", pictures, "--json")
    assert code == 0
    assert json.loads(said)["rows"] == 147
    code, said, _ = command(monkeypatch, capsys, "inspect", out, "--json")
    assert json.loads(said)["storage"] == "float16"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--verify", "nowhere"), "no folder of vectors"),
        (("-o", "v.safetensors", "--format", "onnx"), "--format is for a folder of shards"),
        (("-o", "v", "--engine", "spark"), "unknown engine 'spark'; there are local, ray"),
        (("-o", "v", "--sink", "csv"), "unknown sink 'csv'; there are lance, parquet"),
        (("-o", "v", "--shard-rows", "0"), "--shard-rows must be at least 1"),
        (("-o", "v", "--precision", "int8"), "no exported files are int8"),
        (("-o", "v", "--address", "auto"), "the local engine has none"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    bundle, pictures, tmp_path, monkeypatch, capsys, words, said
):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(monkeypatch, capsys, "embed", bundle.root, "-d", pictures, "-q", *words)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_ids_are_hashed_so_that_no_two_lists_are_alike():
    assert ids_digest(["a", "b"]) == (2, hashlib.sha256(b"a\nb\n").hexdigest())
    assert ids_digest(["ab"])[1] != ids_digest(["a", "b"])[1]
    with pytest.raises(DataError, match="line break"):
        ids_digest(["a\nb"])


# -- what a billion asks for ----------------------------------------------------------------------


def test_an_estimate_is_the_arithmetic_of_a_rate():
    scale = pytest.importorskip("benchmarks.scale", reason="needs a checkout")
    rate = scale.Interval(10.0, 8.0, 12.5)
    found = scale.estimate(36_000_000, rate, 100, 50.0, 1e9, 2e8, price=0.5)
    # 3.6e7 pictures at 10 a second are 3.6e6 s: 1,000 hours; the slowest rate takes 1,250.
    assert (found.core_hours.value, found.core_hours.low, found.core_hours.high) == (
        1000,
        800,
        1250,
    )
    assert found.days.value == pytest.approx(10 / 24)
    assert found.disk_bytes == 1.8e9
    assert found.memory_bytes == pytest.approx(2.1e10)
    assert found.price.high == 625
    # Three repeats: t of 2 degrees of freedom at 97.5 % is 4.302653 (any table has it).
    assert scale.mean([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.302653 / 3**0.5)


def test_the_page_of_results_says_what_the_benchmark_found():
    page = pytest.importorskip("benchmarks.bulk.page", reason="needs a checkout")
    scale = pytest.importorskip("benchmarks.scale", reason="needs a checkout")
    run = {"workers": 2, "model": 50.0, "decoder": 450.0, "repeat": 0}
    stream = {"rows": 80, "worker_peak_bytes": 2**28}
    runs = [run | {"stream": stream | {"images_per_s": x}} for x in (44.0, 46.0)]
    growth = [
        {"images": n, "cpu_s": 2 + n / 1000, "wall_s": n / 500, "main_peak_bytes": 2**27,
         "worker_peak_bytes": 2**28, "backbone": "b", "size_px": 32}
        for n in (1000, 9000)
    ]  # fmt: skip
    tally = {"kills": {"main": 3}, "moments": {"no job": 3}, "images": 9, "ends": 2, "resumed": 1}
    raw = {
        "command": "c", "machine": {"cores": 2}, "data": "emoji", "source_px": 224,
        "rates": [{"backbone": "b", "size_px": 32, "bytes_per_row": 600.0, "runs": runs}],
        "growth": growth,
        "kills": {**tally, "differences": [], "wrong_exits": [], "orphans": 0},
    }  # fmt: skip
    text = page.section(raw)
    assert "| 50.0 | 450 | 45.0 | 90 % (88 to 92) | 90 % |" in text
    assert "1.00 CPU ms for each further picture" in text
    assert "nothing lost, nothing twice" in text
    raw["kills"]["differences"] = ["shards/000001.parquet differs"]
    assert "**1 faults**" in page.section(raw)
    rows = [line for line in scale.table(raw, 64) if "1,000,000,000" in line]
    assert len(rows) == 1
    assert "559 GiB" in rows[0]  # 600 bytes a row, in units of 2**30
