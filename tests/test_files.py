from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero import _files
from hetero._files import (
    canonical_json,
    make_folder,
    sha256,
    storage_errors,
    write_atomically,
    write_json,
    write_together,
)
from hetero.errors import ConfigError, StorageError


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "f"
    raw = bytes(range(256)) * 10_000
    path.write_bytes(raw)
    assert sha256(path) == hashlib.sha256(raw).hexdigest()


def test_what_was_written_is_what_is_there_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "f.txt", "Grüße")
    assert (tmp_path / "a" / "b" / "f.txt").read_bytes() == "Grüße".encode()
    write_atomically(tmp_path / "a" / "b" / "f.txt", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "f.txt").read_bytes() == b"\x00\xff"
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["f.txt"]


def test_others_may_read_what_was_written_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "f", "x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("moment", ["fsync", "chmod", "replace"])
def test_an_interrupted_write_leaves_the_old_content_and_no_litter(
    tmp_path, monkeypatch, interruption, moment
):
    path = tmp_path / "f"
    write_atomically(path, "old")

    def interrupted(*_):
        raise interruption

    monkeypatch.setattr(_files.os, moment, interrupted)
    with pytest.raises(interruption):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_if_one_of_several_files_cannot_be_written_all_stay_as_they_were(tmp_path, monkeypatch):
    write_together({tmp_path / "a": "old a", tmp_path / "b": "old b"})
    sync, calls = os.fsync, []

    def full_the_second_time(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(_files.os, "fsync", full_the_second_time)
    with pytest.raises(StorageError, match="disk is full"):
        write_together({tmp_path / "a": "new a", tmp_path / "b": "new b"})
    assert (tmp_path / "a").read_text() == "old a"
    assert (tmp_path / "b").read_text() == "old b"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (errno.ENOSPC, StorageError, "the disk is full"),
        (errno.EDQUOT, StorageError, "the disk is full"),
        (errno.EIO, StorageError, "the disk failed"),
        (errno.EACCES, ConfigError, "no permission"),
        (errno.EROFS, ConfigError, "no permission"),
        (errno.ENOTDIR, ConfigError, "choose another --output"),
        (errno.ENAMETOOLONG, ConfigError, "choose another --output"),
    ],
)
def test_what_the_system_refuses_becomes_one_line_with_the_path(code, kind, says):
    with pytest.raises(kind, match=says) as caught, storage_errors(Path("some/where")):
        raise OSError(code, os.strerror(code))
    assert str(caught.value).startswith("some/where: ")
    assert "\n" not in str(caught.value)


def test_an_unforeseen_refusal_is_not_swallowed():
    with pytest.raises(OSError, match="Broken pipe"), storage_errors(Path("x")):
        raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_a_file_where_a_folder_has_to_be_is_a_config_error(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(ConfigError, match="choose another --output"):
        make_folder(tmp_path / "f")
    with pytest.raises(ConfigError, match="choose another --output"):
        write_atomically(tmp_path / "f" / "g", "x")


def test_a_name_that_is_too_long_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="choose another --output"):
        write_atomically(tmp_path / ("n" * 300), "x")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value):
    backwards = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(backwards)
    assert json.loads(canonical_json(value)) == value


def test_json_is_written_for_people_and_comes_back(tmp_path):
    value = {"b": [1, 2.5], "a": "ä", "name": "caf\udce9.png"}
    write_json(tmp_path / "v.json", value)
    text = (tmp_path / "v.json").read_text(encoding="utf-8")
    assert text.index('"b"') < text.index('"a"')
    assert '"ä"' in text
    assert json.loads(text) == value


def test_a_number_that_json_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "v.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())
