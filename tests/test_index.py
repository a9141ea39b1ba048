from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import postgres
import pytest
from geometry import CIRCLE, on_circle, space

from hetero import index, retrieval
from hetero.errors import (
    BundleError,
    ConfigError,
    DataError,
    MissingExtraError,
    SpaceMismatchError,
    StorageError,
)
from hetero.index import Found, Generations, Index
from hetero.space import Embeddings, Space

DIM = 16
SPACE = space(DIM)


@dataclass(frozen=True)
class Case:
    """An engine with settings, and what may be asked of it."""

    engine: str
    settings: dict[str, Any] = field(default_factory=dict)
    recall: float = 1.0  # below 1: approximate
    close: float = 1e-6  # how far a cosine may be off

    @property
    def name(self) -> str:
        return "-".join([self.engine, *(f"{k}={v}" for k, v in self.settings.items())])

    @property
    def folder(self) -> bool:
        return self.engine not in ("milvus", "pgvector")


CASES = [
    Case("exact"),
    Case("hnsw", {"m": 8}, 0.95),
    Case("ivfpq", {"learn_from": 256, "cells": 4, "nprobe": 4, "bytes": 16}, 0.6, 0.2),
    Case("usearch", {"m": 8}, 0.95),
    Case("usearch", {"dtype": "i8"}, 0.85, 0.05),
    Case("milvus", {"kind": "FLAT"}),
    Case("milvus", {"kind": "HNSW"}, 0.95),
    Case("pgvector", {"kind": "exact"}),
    Case("pgvector", {"kind": "hnsw"}, 0.95),
]
LIBRARY = {"exact": "faiss", "hnsw": "faiss", "ivfpq": "faiss", "usearch": "usearch"}

every_engine = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
every_folder = pytest.mark.parametrize("case", [c for c in CASES if c.folder], ids=lambda c: c.name)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A PostgreSQL server's address; skips where there is none."""
    pytest.importorskip("psycopg", reason="needs the extra 'pgvector'")
    pytest.importorskip("pgvector", reason="needs the extra 'pgvector'")
    if why := postgres.missing():
        pytest.skip(why)
    with postgres.serving() as address:
        yield address


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of milvus-lite."""
    pytest.importorskip("pymilvus", reason="needs the extra 'milvus'")
    pytest.importorskip("milvus_lite", reason="needs the extra 'milvus'")
    return str(tmp_path_factory.mktemp("milvus") / "galleries.db")


COUNTER = itertools.count()


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path):
    """Gives for a case the name of an index that is not there yet."""

    def make(case: Case) -> str:
        if case.folder:
            pytest.importorskip(LIBRARY[case.engine], reason="needs the extra 'index'")
            return f"{case.engine}:{tmp_path / f'index {next(COUNTER)}'}"
        base = request.getfixturevalue("server" if case.engine == "pgvector" else "milvus")
        return f"{case.engine}:{base}#t{next(COUNTER)}"

    return make


@pytest.fixture
def opened(case: Case, place) -> Iterator[tuple[str, Index]]:
    """The name of an empty index, and that index."""
    spec = place(case)
    with index.create(spec, SPACE, case.settings) as made:
        yield spec, made


def rows(count: int, seed: int, prefix: str = "", of: Space = SPACE) -> Embeddings:
    random = np.random.default_rng(seed)
    ids = [f"{prefix}{i}" for i in range(count)]
    return Embeddings.normalised(of, ids, random.standard_normal((count, of.dim)), "by hand")


def named(*ids: str, seed: int = 9) -> Embeddings:
    return rows(len(ids), seed).__class__(SPACE, ids, rows(len(ids), seed).vectors, "by hand")


def oracle(queries: Embeddings, gallery: Embeddings, k: int) -> Found:
    """What `hetero.retrieval.search` finds."""
    found, scores = retrieval.search(queries, gallery, k)
    return Found(tuple(tuple(gallery.ids[r] for r in line) for line in found), scores)


def must_be_as_good(case: Case, found: Found, wanted: Found) -> None:
    """Equal to the oracle, or for an approximate engine near enough to it."""
    assert [len(line) for line in found.ids] == [len(line) for line in wanted.ids]
    hits = [len(set(a) & set(b)) / len(b) for a, b in zip(found.ids, wanted.ids, strict=True) if b]
    if case.recall == 1.0:
        assert found.ids == wanted.ids
    assert np.mean(hits) >= case.recall
    assert (np.diff(found.scores, axis=1) <= 1e-6).all()
    true = {
        (q, i): s
        for q, line in enumerate(wanted.ids)
        for i, s in zip(line, wanted.scores[q], strict=False)
    }
    off = [
        abs(true[q, i] - s)
        for q, line in enumerate(found.ids)
        for i, s in zip(line, found.scores[q], strict=False)
        if (q, i) in true
    ]
    assert max(off) <= case.close


# -- the contract, for every engine ---------------------------------------------------------------


@every_engine
def test_search_finds_what_the_oracle_finds(case, opened):
    _, made = opened
    gallery, queries = rows(400, 0), rows(30, 1, "q")
    made.add(gallery.take(gallery.ids[:300]))
    made.add(gallery.take(gallery.ids[300:]))
    made.save()
    assert len(made) == 400
    must_be_as_good(case, made.search(queries, 10), oracle(queries, gallery, 10))
    must_be_as_good(
        case, made.search(queries.take(["q3"]), 1), oracle(queries.take(["q3"]), gallery, 1)
    )


@every_engine
def test_more_effort_finds_more_until_all_is_found(case, opened):
    _, made = opened
    if not made.effort_name:
        assert (case.recall, made.effort) == (1.0, 0)
        return
    gallery, queries = rows(400, 0), rows(30, 1, "q")
    made.add(gallery)
    made.save()
    wanted = oracle(queries, gallery, 5)

    def recall(effort: int) -> float:
        made.effort = effort
        found = made.search(queries, 5)
        return sum(len({*a} & {*b}) for a, b in zip(found.ids, wanted.ids, strict=True)) / 150

    assert recall(1) <= recall(400)
    assert recall(400) >= case.recall


@every_engine
def test_rows_and_queries_of_another_space_are_refused_and_change_nothing(case, opened):
    spec, made = opened
    made.add(rows(5, 0))
    theirs = space(DIM, "d", "theirs")
    for strange in (rows(3, 1, "x").pretend_in(theirs), rows(3, 1, "x", space(DIM + 1))):
        for action in (made.add, made.replace, lambda q: made.search(q, 1)):
            with pytest.raises(SpaceMismatchError, match=strange.space.id):
                action(strange)
    made.save()
    assert len(made) == 5
    made.close()
    with index.load(spec) as again:
        assert again.space == SPACE
        with pytest.raises(SpaceMismatchError, match="theirs"):
            again.search(rows(3, 1).pretend_in(theirs), 1)
        # A space's name carries no identity.
        assert again.search(rows(1, 0).pretend_in(space(DIM, name="renamed")), 1).ids == (("0",),)


@every_engine
def test_an_id_that_is_there_is_refused_and_none_of_its_companions_gets_in(case, opened):
    _, made = opened
    made.add(rows(5, 0))
    with pytest.raises(DataError, match=r"1 of 3 ids are in the index already, first '4'"):
        made.add(named("new", "4", "newer"))
    assert len(made) == 5
    assert made.present(["new", "newer", "4"]) == {"4"}


@every_engine
def test_replaced_rows_are_found_by_their_new_vectors_and_new_ones_are_added(case, opened):
    _, made = opened
    gallery = rows(300, 0)
    made.add(gallery)
    fresh = named("7", "8", "more")
    made.replace(fresh)
    made.save()
    assert len(made) == 301
    kept = [i for i in gallery.ids if i not in fresh.ids]
    after = np.concatenate([gallery.take(kept).vectors, fresh.vectors])
    expected = Embeddings(SPACE, (*kept, *fresh.ids), after, "by hand")
    must_be_as_good(case, made.search(fresh, 5), oracle(fresh, expected, 5))


@every_engine
def test_deleted_rows_are_gone_and_the_rest_is_found(case, opened):
    _, made = opened
    gallery, queries = rows(400, 0), rows(20, 1, "q")
    made.add(gallery)
    made.save()
    gone = [str(i) for i in range(0, 400, 3)]
    made.delete(gone)
    left = gallery.take([i for i in gallery.ids if i not in set(gone)])
    for _ in ("before it is saved", "after"):
        assert len(made) == len(left)
        found = made.search(queries, 10)
        assert not {i for line in found.ids for i in line} & set(gone)
        must_be_as_good(case, found, oracle(queries, left, 10))
        made.save()
    made.add(gallery.take(gone))
    assert len(made) == 400
    must_be_as_good(case, made.search(queries, 10), oracle(queries, gallery, 10))


@every_engine
def test_deleting_what_is_not_there_is_refused_and_deletes_nothing(case, opened):
    _, made = opened
    made.add(rows(5, 0))
    with pytest.raises(DataError, match="1 of 2 ids are not in the index, first 'nobody'"):
        made.delete(["3", "nobody"])
    assert made.present(["3"]) == {"3"}
    made.delete([])
    made.delete(["3", "3"])
    assert len(made) == 4


@every_engine
def test_an_index_survives_being_closed_and_opened_and_changed(case, opened):
    spec, made = opened
    gallery, queries = rows(300, 0), rows(10, 1, "q")
    made.add(gallery)
    made.delete(["5"])
    made.save()
    before = made.search(queries, 10)
    made.close()
    made.close()
    with index.load(spec) as again:
        assert (len(again), again.space, again.effort) == (299, SPACE, made.effort)
        after = again.search(queries, 10)
        assert after.ids == before.ids
        np.testing.assert_allclose(after.scores, before.scores, atol=1e-6)
        again.add(named("more"))
        again.delete(["6"])
        again.save()
    with index.load(spec) as third:
        assert len(third) == 299
        assert third.present(["5", "6", "7", "more"]) == {"7", "more"}
        assert third.search(named("more"), 1).ids == (("more",),)


@every_engine
def test_an_empty_index_finds_nothing_and_survives(case, opened):
    spec, made = opened
    for step in ("made", "saved", "emptied"):
        if step == "saved":
            made.save()
        if step == "emptied":
            made.add(named("a"))
            made.delete(["a"])
        assert len(made) == 0
        found = made.search(rows(3, 1), 5)
        assert (found.ids, found.scores.shape) == (((), (), ()), (3, 0))
        made.add(rows(0, 0))
        made.replace(rows(0, 0))
    made.save()
    made.close()
    with index.load(spec) as again:
        assert len(again) == 0
        assert again.search(rows(0, 1), 5).ids == ()


@every_engine
def test_asked_for_more_rows_than_there_are_it_gives_them_all(case, opened):
    _, made = opened
    gallery = rows(7, 0)
    made.add(gallery)
    made.save()
    found = made.search(rows(4, 1, "q"), 50)
    assert found.scores.shape == (4, 7)
    assert [set(line) for line in found.ids] == [set(gallery.ids)] * 4
    must_be_as_good(case, found, oracle(rows(4, 1, "q"), gallery, 50))


@every_engine
def test_a_search_for_no_row_is_refused(case, opened):
    _, made = opened
    made.add(rows(2, 0))
    for k in (0, -1):
        with pytest.raises(DataError, match="at least 1"):
            made.search(rows(1, 1), k)


STRANGE = (
    "日本/写真 1.jpg",
    "Ünïcödé 🙂 e\u0301",
    "a 'quoted' \"name\"; DROP TABLE hetero; --",
    "'] or key != '",
    '"] or key != "',
    "x' OR '1'='1",
    "back\\slash\\'",
    "%s %(id)s {0} {} $1",
    "line\nbreak\tand tab\r",
    "-1",
    "null",
    " ",
    "a" * 1000,
)


@every_engine
def test_an_id_is_text_whatever_is_in_it(case, opened):
    spec, made = opened
    strange = named(*STRANGE)
    made.add(strange)
    made.add(named("innocent", seed=3))
    made.save()
    assert [line[0] for line in made.search(strange, 1).ids] == list(STRANGE)
    assert made.present([*STRANGE, "nobody"]) == set(STRANGE)
    made.replace(strange.take(STRANGE[:5]))
    for name in STRANGE[::2]:
        made.delete([name])
    made.save()
    assert made.present([*STRANGE, "innocent"]) == {*STRANGE[1::2], "innocent"}
    made.close()
    with index.load(spec) as again:
        assert again.present([*STRANGE, "innocent"]) == {*STRANGE[1::2], "innocent"}
        assert len(again) == len(STRANGE[1::2]) + 1


@every_engine
@pytest.mark.parametrize("bad", ["", "a\0b", "lone \udcff", "é" * 501])
def test_an_id_that_not_every_engine_can_store_is_refused_by_all(case, opened, bad):
    _, made = opened
    for action in (made.add, made.replace):
        with pytest.raises(DataError, match="1 to 1,000 bytes"):
            action(named("good", bad))
    assert len(made) == 0


@every_engine
def test_an_index_is_not_made_where_one_is(case, opened):
    spec, made = opened
    made.add(named("a"))
    made.save()
    with pytest.raises(ConfigError, match="already"):
        index.create(spec, SPACE, case.settings)
    assert made.present(["a"]) == {"a"}


@every_engine
def test_an_index_that_is_not_there_is_one_line(case, place):
    with pytest.raises(BundleError, match=r"there is no|no index here") as caught:
        index.load(place(case))
    assert "\n" not in str(caught.value)


def test_every_module_of_the_folder_is_under_contract():
    assert set(index.names()) == {case.engine for case in CASES}


#: pytorch-metric-learning imports this module, which replaces faiss's methods for everybody.
WITH_TORCH_UTILS = """
import sys
import faiss.contrib.torch_utils
from pathlib import Path
from hetero import index
from hetero.space import Embeddings
some = Embeddings.load(Path(sys.argv[1]))
for engine, settings in (
    ("exact", {}), ("hnsw", {}), ("ivfpq", {"learn_from": 256, "cells": 4, "bytes": 16})
):
    made = index.create(f"{engine}:", some.space, settings)
    made.add(some)
    made.delete(some.ids[:10])
    found = made.search(some.take(some.ids[10:20]), 1)
    assert found.ids == tuple((name,) for name in some.ids[10:20]), (engine, found.ids)
"""


def test_engines_of_faiss_do_not_mind_what_others_have_made_of_it(tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed; needs the extra 'index'")
    pytest.importorskip("torch", reason="PyTorch is not installed; needs the extra 'train'")
    rows(400, 0).save(tmp_path / "rows")
    done = run(WITH_TORCH_UTILS, str(tmp_path / "rows"))
    assert done.returncode == 0, done.stderr


# -- killed while it writes -----------------------------------------------------------------------

#: Saves a change; a child dies at each step of it in turn, and says how many there are.
DIE_SAVING = """
import os, signal, sys
from pathlib import Path
from hetero import index, _files
from hetero.space import Embeddings
spec, more = sys.argv[1:]
made, replace, step = index.load(spec), os.replace, 0
made.replace(Embeddings.load(Path(more)))
def dying(at, after):
    def call(*names):
        global step
        step += 1
        if after and step == at:
            replace(*names)
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)
    return call
for at in (1, 2, 3):
    for after in (False, True)[: 1 if at == 3 else 2]:
        child = os.fork()
        if not child:
            os.replace = dying(at, after)
            made.save()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        old = index.load(spec)
        assert old.present(["more"]) == set() and len(old) == 300, (at, after)
made.save()
"""

#: Dies when a part of the rows is on its way to the server.
DIE_SENDING = """
import os, signal, sys
from pathlib import Path
from hetero import index
from hetero.space import Embeddings
spec, more = sys.argv[1:]
made, rows = index.load(spec), Embeddings.load(Path(more))
kind = type(made)
if spec.startswith("milvus"):
    from hetero.index import milvus
    milvus.ROWS = 50
    real, calls = made._client.upsert, []
    def upsert(*arguments):
        if calls:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(1)
        real(*arguments)
    made._client.upsert = upsert
else:
    real = kind._copy
    def copy(self, table, ids, vectors):
        real(self, table, ids[:50], vectors[:50])
        os.kill(os.getpid(), signal.SIGKILL)
    kind._copy = copy
made.replace(rows)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )


@every_folder
def test_a_folder_whose_writer_is_killed_holds_the_old_state(case, opened, tmp_path):
    spec, made = opened
    made.add(rows(300, 0))
    made.save()
    made.close()
    named("more", "3").save(tmp_path / "more")
    done = run(DIE_SAVING, spec, str(tmp_path / "more"))
    assert done.returncode == 0, done.stderr
    with index.load(spec) as after:
        assert after.present(["more"]) == {"more"}
        assert len(after) == 301
    # What killed writers left behind is swept, but for one unfinished file each.
    folder = Path(spec.partition(":")[2])
    assert len([x for x in folder.iterdir() if not x.name.startswith(".")]) == 3


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_a_table_whose_writer_is_killed_holds_the_old_state(kind, place, tmp_path):
    spec = place(Case("pgvector"))
    before = rows(120, 0)
    with index.create(spec, SPACE, {"kind": kind}) as made:
        made.add(before)
        made.save()
    rows(120, 5, "new").save(tmp_path / "more")
    done = run(DIE_SENDING, spec, str(tmp_path / "more"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    with index.load(spec) as after:
        assert after.present([f"new{i}" for i in range(120)]) == set()
        assert len(after) == 120
        assert after.search(before, 1).ids == tuple((i,) for i in before.ids)


def test_milvus_whose_writer_is_killed_holds_whole_rows_and_is_made_good_by_doing_it_again(
    tmp_path, milvus
):
    spec = f"milvus:{tmp_path / 'mine.db'}"
    before, fresh = rows(120, 0), rows(120, 5, "new")
    with index.create(spec, SPACE) as made:
        made.add(before)
    fresh.save(tmp_path / "more")
    done = run(DIE_SENDING, spec, str(tmp_path / "more"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    with index.load(spec) as after:
        assert after.search(before, 1).ids == tuple((i,) for i in before.ids)
        assert after.present(fresh.ids) <= set(fresh.ids[:50])
        after.replace(fresh)
        assert len(after) == 240
        assert after.search(fresh, 1).ids == tuple((i,) for i in fresh.ids)


# -- torn and strange folders ---------------------------------------------------------------------


def saved(place, case: Case = CASES[0]) -> tuple[str, Path]:
    """A saved index, and its folder."""
    spec = place(case)
    with index.create(spec, SPACE, case.settings) as made:
        made.add(rows(20, 0))
        made.save()
    return spec, Path(spec.partition(":")[2])


@every_folder
@pytest.mark.parametrize("part", ["rows-*", "ids-*", "index.json"])
def test_a_torn_file_is_named_in_one_line(case, place, part):
    spec, folder = saved(place, case)
    (torn,) = folder.glob(part)
    whole = torn.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-2]):
        torn.write_bytes(damaged)
        with pytest.raises(BundleError, match=torn.name) as caught:
            index.load(spec)
        assert "\n" not in str(caught.value)
    if part != "index.json":
        torn.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(BundleError, match="torn or altered"):
            index.load(spec)
    torn.unlink()
    with pytest.raises(BundleError, match="missing"):
        index.load(spec)


@pytest.mark.parametrize(
    "change",
    [
        {"hetero.schema": "index/9"},
        {"engine": "hnsw"},
        {"rows": 19},
        {"space": {"name": "x", "digest": "short", "dim": DIM}},
        {"space": {"name": "x", "digest": "a" * 64, "dim": DIM + 1}},
        {"files": {}},
        {"files": {"rows": {"name": "../../etc/passwd", "bytes": 1, "sha256": ""}}},
        {"files": 3},
        {"settings": 7},
    ],
)
def test_a_manifest_that_says_what_is_not_so_is_refused_in_one_line(place, change):
    spec, folder = saved(place)
    manifest = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(BundleError) as caught:
        index.load(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"'])
def test_a_manifest_that_is_none_is_refused_in_one_line(place, text):
    spec, folder = saved(place)
    (folder / "index.json").write_text(text)
    with pytest.raises(BundleError, match="torn or not ours"):
        index.load(spec)


def test_an_index_named_by_another_engine_says_which_it_is(place):
    _, folder = saved(place)
    with pytest.raises(BundleError, match=f"name it exact:{folder}"):
        index.load(f"usearch:{folder}")


def test_a_folder_that_may_not_be_written_is_one_line_and_the_index_is_still_there(
    place, monkeypatch
):
    spec, _ = saved(place)
    made = index.load(spec)
    made.add(named("more"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="disk is full"):
        made.save()
    monkeypatch.undo()
    assert len(index.load(spec)) == 20
    made.save()
    assert len(index.load(spec)) == 21


def test_an_index_without_a_folder_works_and_cannot_be_saved():
    pytest.importorskip("faiss", reason="needs the extra 'index'")
    with index.create("exact:", SPACE) as made:
        made.add(rows(5, 0))
        assert made.search(rows(5, 0), 1).ids == tuple((str(i),) for i in range(5))
        with pytest.raises(ConfigError, match="without a folder"):
            made.save()


def test_hnsw_is_built_anew_when_much_of_it_is_deleted(place):
    spec = place(CASES[1])
    gallery = rows(200, 0)
    with index.create(spec, SPACE) as made:
        made.add(gallery)
        made.delete(gallery.ids[:40])
        made.save()
        folder = Path(spec.partition(":")[2])
        (few,) = folder.glob("ids-*")
        assert json.loads(few.read_text()).count(None) == 40
        made.delete(gallery.ids[40:80])
        made.save()
        (few,) = folder.glob("ids-*")
        assert json.loads(few.read_text()) == list(gallery.ids[80:])
        must_be_as_good(
            CASES[1],
            made.search(rows(20, 1), 5),
            oracle(rows(20, 1), gallery.take(gallery.ids[80:]), 5),
        )


def test_ivfpq_is_exact_until_it_has_learnt_and_smaller_afterwards(place):
    pytest.importorskip("faiss", reason="needs the extra 'index'")
    case = CASES[2]
    few, many = place(case), place(case)
    gallery = rows(2000, 0)
    for spec, count in ((few, 255), (many, 2000)):
        with index.create(spec, SPACE, {**case.settings, "bytes": 4}) as made:
            made.add(gallery.take(gallery.ids[:count]))
            made.save()
            assert made.compressed is (count == 2000)
    size = [next(Path(s.partition(":")[2]).glob("rows-*")).stat().st_size for s in (few, many)]
    assert size[0] > 255 * 4 * DIM
    assert size[1] < 2000 * 4 * DIM / 2
    with index.load(few) as exact:
        wanted = oracle(rows(9, 1), gallery.take(gallery.ids[:255]), 7)
        assert exact.search(rows(9, 1), 7).ids == wanted.ids


def test_usearch_maps_a_file_and_reads_it_only_to_change_it(place):
    spec, folder = saved(place, CASES[3])
    (file,) = folder.glob("rows-*")
    with index.load(spec) as made:
        assert made._mapped == file
        made.search(rows(3, 1), 2)
        assert made._mapped == file
        made.add(named("more"))
        assert made._mapped is None
        assert made.search(named("more"), 1).ids == (("more",),)


@pytest.mark.parametrize(
    ("engine", "settings", "says"),
    [
        ("hnsw", {"m": 1}, "m at least 2"),
        ("hnsw", {"n": 1}, "no setting 'n'"),
        ("hnsw", {"m": "many"}, "m needs a int"),
        ("ivfpq", {"bytes": 5}, "does not divide"),
        ("ivfpq", {"nprobe": 0}, "nprobe"),
        ("usearch", {"dtype": "f8"}, "there are f32"),
        ("milvus", {"kind": "MAGIC"}, "there are FLAT"),
        ("pgvector", {"kind": "magic"}, "there are hnsw"),
        ("pgvector", {"ef": 2000}, "ef in 1..1000"),
        ("nobody", {}, "unknown index 'nobody'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line(tmp_path, engine, settings, says):
    if engine in LIBRARY:
        pytest.importorskip(LIBRARY[engine], reason="needs the extra 'index'")
    with pytest.raises(ConfigError, match=says):
        index.create(f"{engine}:{tmp_path / 'x.db'}", SPACE, settings)


# -- servers --------------------------------------------------------------------------------------


def test_a_table_s_name_is_only_a_name(server):
    name = 'a "b"; DROP TABLE x; --é'
    spec = f"pgvector:{server}#{name}"
    with index.create(spec, SPACE) as made:
        made.add(named("a"))
        made.save()
    with index.load(spec) as again:
        assert again.search(named("a"), 1).ids == (("a",),)
    with pytest.raises(ConfigError, match="1 to 63 bytes"):
        index.load(f"pgvector:{server}#{'x' * 64}")


def test_somebody_else_s_table_is_refused_and_not_touched(server):
    import psycopg

    with psycopg.connect(server, autocommit=True) as other:
        other.execute("CREATE TABLE theirs (id text)")
        other.execute("COMMENT ON TABLE theirs IS 'our customers'")
    with pytest.raises(BundleError, match="not an index of ours"):
        index.load(f"pgvector:{server}#theirs")
    with pytest.raises(ConfigError, match="a table 'theirs' already"):
        index.create(f"pgvector:{server}#theirs", SPACE)


def test_the_graph_of_a_table_is_used(server):
    spec = f"pgvector:{server}#planned"
    with index.create(spec, SPACE) as made:
        made.add(rows(3000, 0))
        made.save()
        plan = made._connection.execute(
            "EXPLAIN SELECT id FROM planned ORDER BY embedding <#> %s LIMIT 5",
            [rows(1, 1).vectors[0]],
        ).fetchall()
        assert "planned_hnsw" in str(plan)


def test_two_clients_of_one_table_see_each_other_and_cannot_both_add_an_id(server):
    spec = f"pgvector:{server}#shared"
    with index.create(spec, SPACE) as one, index.load(spec) as other:
        one.add(named("a"))
        assert other.present(["a"]) == {"a"}
        # The second looked before the first wrote.
        other.present = lambda ids: frozenset()  # type: ignore[method-assign]
        with pytest.raises(DataError, match="meanwhile"):
            other.add(named("b", "a"))
        assert len(one) == 1


def test_a_server_that_is_not_there_is_one_line_without_the_password(tmp_path):
    pytest.importorskip("psycopg", reason="needs the extra 'pgvector'")
    address = f"postgresql://me:secret@/shop?host={tmp_path}"
    with pytest.raises(ConfigError, match="no connection") as caught:
        index.load(f"pgvector:{address}")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_two_collections_of_one_milvus_file_are_two_indexes(tmp_path, milvus):
    one, other = (f"milvus:{tmp_path / 'both.db'}#{x}" for x in ("one", "other"))
    with index.create(one, SPACE) as a:
        a.add(named("a"))
        with index.create(other, space(3, "b")) as b:
            assert len(b) == 0
        # Closing the one does not take the file away from the other.
        assert a.search(named("a"), 1).ids == (("a",),)


@pytest.mark.parametrize("where", ["gallery", "gallery.db#a b", "gallery.db#é"])
def test_a_milvus_address_that_is_none_is_refused(where):
    pytest.importorskip("pymilvus", reason="needs the extra 'milvus'")
    with pytest.raises(ConfigError, match="milvus"):
        index.load(f"milvus:{where}")


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch):
    for engine, library in {**LIBRARY, "milvus": "pymilvus", "pgvector": "psycopg"}.items():
        for name in [n for n in sys.modules if n.partition(".")[0] == library]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingExtraError, match=r"pip install 'hetero\["):
            index.create(f"{engine}:{tmp_path / 'x.db'}", SPACE)


# -- two generations ------------------------------------------------------------------------------


@contextlib.contextmanager
def generations(old: Space, new: Space, holds: tuple[Space, ...] = ()) -> Iterator[Generations]:
    pytest.importorskip("faiss", reason="needs the extra 'index'")
    with index.create("exact:", old) as a, index.create("exact:", new) as b:
        yield Generations(a, b, holds)


def test_in_one_space_every_query_searches_both_and_a_refreshed_row_answers_by_its_new_vector():
    before, after, queries = rows(200, 0), rows(200, 5), rows(20, 1, "q")
    with generations(SPACE, SPACE) as both:
        both.old.add(before)
        for done in (0, 30, 170, 200):
            both.refresh(after.take(after.ids[:done]))
            kept = before.take(before.ids[done:])
            mixed = np.concatenate([after.vectors[:done], kept.vectors])
            wanted = oracle(queries, Embeddings(SPACE, before.ids, mixed, "mixed"), 10)
            found = both.search(queries, 10)
            assert found.ids == wanted.ids
            np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
            assert len(both.old) + len(both.new) == 200


def test_a_refresh_that_was_stopped_between_two_steps_finds_no_row_twice():
    before, after, queries = rows(200, 0), rows(200, 5), rows(20, 1, "q")
    with generations(SPACE, SPACE) as both:
        both.old.add(before)
        both.new.add(after.take(after.ids[:190]))  # and not taken out of the old one
        mixed = np.concatenate([after.vectors[:190], before.vectors[190:]])
        wanted = oracle(queries, Embeddings(SPACE, before.ids, mixed, "mixed"), 10)
        assert both.search(queries, 10).ids == wanted.ids
        both.refresh(after.take(after.ids[:190]))
        assert (len(both.old), len(both.new)) == (10, 190)


def test_a_longer_space_that_holds_the_old_one_serves_queries_of_both_ages():
    long = space(DIM + 8, "b", "longer")
    before, after = rows(100, 0), rows(100, 5, of=long)
    with generations(SPACE, long, (SPACE,)) as both:
        both.old.add(before)
        both.refresh(after.take(after.ids[:40]))
        short = after.shortened(SPACE)
        # An app that was not updated: all rows, those re-embedded by the new model's first numbers.
        theirs = rows(10, 1, "q")
        mixed = np.concatenate([short.vectors[:40], before.vectors[40:]])
        wanted = oracle(theirs, Embeddings(SPACE, before.ids, mixed, "mixed"), 10)
        assert both.search(theirs, 10).ids == wanted.ids
        # One that was: new rows by whole vectors, the others by first numbers, one ranking.
        ours = rows(10, 2, "q", long)
        cosines = np.concatenate(
            [
                ours.vectors @ after.vectors[:40].T,
                ours.shortened(SPACE).vectors @ before.vectors[40:].T,
            ],
            axis=1,
        )
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :10]
        found = both.search(ours, 10, (SPACE,))
        assert found.ids == tuple(tuple(before.ids[i] for i in line) for line in order)
        np.testing.assert_allclose(found.scores, np.take_along_axis(cosines, order, 1), atol=1e-6)
        # A new query whose model does not say that it holds the old space sees new rows only.
        assert {i for line in both.search(ours, 100).ids for i in line} == set(after.ids[:40])


def test_queries_and_generations_of_strange_spaces_are_refused():
    other = space(DIM, "d", "theirs")
    with pytest.raises(SpaceMismatchError, match="cannot stand beside"), generations(SPACE, other):
        pass
    with generations(SPACE, SPACE) as both, pytest.raises(SpaceMismatchError, match="theirs"):
        both.search(rows(2, 1).pretend_in(other), 3)


def test_of_equal_cosines_the_new_generation_comes_first():
    with generations(CIRCLE, CIRCLE) as both:
        both.old.add(on_circle(0, 20, ids=["old", "far"]))
        both.refresh(on_circle(0, ids=["new"]))
        found = both.search(on_circle(0), 5)
        assert found.ids == (("new", "old", "far"),)
        np.testing.assert_allclose(found.scores, [[1, 1, np.cos(np.radians(20))]], atol=1e-6)
