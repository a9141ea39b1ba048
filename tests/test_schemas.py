"""Files of other versions: older ones are read as they were meant, newer ones refused in a line.

What lies in golden/ was written by the code of its time: report_1_first.json by the first commit,
report_1.json, bundle_1/ and embeddings_1.safetensors by the last before reports had version 2.
"""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import hetero
from hetero import _ledger, _manifest, _schemas, backfill, devices
from hetero.bundle import Bundle
from hetero.errors import BundleError, ConfigError
from hetero.passport import Passport
from hetero.report import Report
from hetero.space import Embeddings

GOLDEN = Path(__file__).parent / "golden"
PACKAGE = Path(hetero.__file__).parent


# --- the rules


def test_our_own_version_and_older_ones_are_known_by_their_number():
    assert _schemas.check("f", "hetero.x/3", "hetero.x/3", again="") == 3
    assert _schemas.check("f", "hetero.x/1", "hetero.x/3", again="") == 1


@pytest.mark.parametrize(
    "found",
    [
        *(None, 1, "", "hetero.x", "hetero.y/3", "hetero.x/", "hetero.x/0", "hetero.x/03"),
        *("hetero.x/-1", "hetero.x/1.0", "hetero.x/٣", "x/3", ["hetero.x/3"]),
        "hetero.x/" + "9" * 5000,
    ],
    ids=lambda v: repr(v)[:20],
)
def test_what_is_no_version_of_ours_is_refused_with_what_to_do(found):
    with pytest.raises(BundleError) as caught:
        _schemas.check("f.json", found, "hetero.x/3", again="make it again")
    text = str(caught.value)
    assert text == f"f.json: schema {repr(found)[:60]}, this program reads 'hetero.x/3'; " + (
        "make it again"
    )


def test_a_newer_version_is_refused_with_who_wrote_it_and_what_to_do():
    with pytest.raises(BundleError) as caught:
        _schemas.check("f.json", "hetero.x/4", "hetero.x/3", again="make it again", writer="9.1.0")
    assert str(caught.value) == (
        "f.json: schema 'hetero.x/4', written by hetero 9.1.0, where this one, "
        f"{hetero.__version__}, reads up to 'hetero.x/3'; update it with "
        "pip install --upgrade hetero, or make it again"
    )


def test_an_older_file_goes_through_every_step_between_and_is_not_changed_itself():
    def second(old):
        return {**old, "path": [*old["path"], 2]}

    def third(old):
        return {**old, "path": [*old["path"], 3]}

    for begin, path in ((1, [2, 3]), (2, [3]), (3, [])):
        before = {"schema": f"x/{begin}", "path": []}
        found = _schemas.up_to_date("f", before, "x/3", [second, third], again="")
        assert found == {"schema": "x/3", "path": path}
        assert before == {"schema": f"x/{begin}", "path": []}
    with pytest.raises(BundleError, match="reads x/2 to x/3"):
        _schemas.up_to_date("f", {"schema": "x/1"}, "x/3", [third], again="")


# --- older files


@pytest.mark.parametrize("name", ["report_1_first.json", "report_1.json"])
def test_a_report_of_version_1_is_read_judged_and_written_as_version_2(name, tmp_path):
    raw = json.loads((GOLDEN / name).read_text())
    assert raw["schema"] == "hetero.report/1"
    assert "cells" not in raw
    report = Report.load(GOLDEN / name)
    assert report.verdict == raw["verdict"] == "pass"
    assert (report.cells, report.agreement) == ((), ())
    assert [m.name for m in report.measurements] == [m["name"] for m in raw["measurements"]]
    (missing,) = report.not_run
    assert missing.obstacle == "unavailable"  # version 1 told of nothing else
    assert report.exit_code == 0
    report.save(tmp_path / "report.json")
    again = json.loads((tmp_path / "report.json").read_text())
    schema = json.loads((PACKAGE / "report.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(again)
    for key in ("subject", "verdict", "facts", "examples", "series"):
        assert again[key] == raw[key], key
    for old, new in zip(raw["measurements"], again["measurements"], strict=True):
        assert {k: new[k] for k in old} == old


def test_a_bundle_and_embeddings_of_version_1_are_read():
    bundle = Bundle.load(GOLDEN / "bundle_1")
    assert bundle.nested == ()
    assert bundle.probe().ids == ("a", "b")
    assert bundle.space.dim == 2
    found = Embeddings.load(GOLDEN / "embeddings_1.safetensors")
    assert found.ids == ("a", "b")
    np.testing.assert_allclose(found.vectors, [[1, 0], [0.6, 0.8]], atol=1e-6)


# --- newer files


def newer_bundle(folder: Path) -> None:
    (folder / "manifest.json").write_text(
        json.dumps({"schema": "hetero.bundle/2", "made_with": {"hetero": "7.8.9"}})
    )
    Bundle.load(folder)


def newer_report(folder: Path) -> None:
    path = folder / "report.json"
    path.write_text(json.dumps({"schema": "hetero.report/99", "facts": {"hetero": "7.8.9"}}))
    Report.load(path)


def newer_embeddings(folder: Path) -> None:
    from safetensors.numpy import save_file

    path = folder / "embeddings.safetensors"
    save_file({"vectors": np.eye(2, dtype=np.float32)}, path, {"hetero.schema": "embeddings/2"})
    Embeddings.load(path)


def newer_ledger(folder: Path) -> None:
    (folder / "job.json").write_text('{"schema": "hetero.sharded/2"}')
    _ledger.read(folder / "job.json", _ledger.Job)


def newer_passport(folder: Path) -> None:
    Passport.from_json({"schema": "hetero.passport/2"}, "passport.json")


def newer_inventory(folder: Path) -> None:
    (folder / "devices.toml").write_text("version = 2\n[devices]\n")
    devices.load_inventory(folder / "devices.toml")


def newer_plan(folder: Path) -> None:
    (folder / "plan.toml").write_text("version = 2\n")
    backfill.load(folder / "plan.toml")


@pytest.mark.parametrize(
    ("read", "writer"),
    [
        (newer_bundle, "hetero 7.8.9"),
        (newer_report, "hetero 7.8.9"),
        *((read, "a newer hetero") for read in (newer_embeddings, newer_ledger, newer_passport)),
        *((read, "a newer hetero") for read in (newer_inventory, newer_plan)),
    ],
)
def test_a_newer_file_is_refused_in_one_line(read, writer, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert f"written by {writer}, where this one, {hetero.__version__}, reads up to" in text
    assert "pip install --upgrade hetero" in text
    assert "\n" not in text
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("version", ["0", "true", '"1"', "1.0"])
def test_a_text_whose_version_is_no_number_is_refused(version, tmp_path):
    path = tmp_path / "devices.toml"
    path.write_text(f"version = {version}\n")
    with pytest.raises(ConfigError, match="leave it out, or write 1"):
        devices.load_inventory(path)
    path.write_text('version = 1\n[devices]\ndesk = "local"\n')
    assert list(devices.load_inventory(path).entries) == ["desk"]


# --- published schemas


def test_the_published_schema_of_manifests_is_that_of_the_types():
    published = json.loads((PACKAGE / "manifest.schema.json").read_text())
    assert published == _manifest.json_schema(), "run `make schemas`"
    jsonschema.Draft202012Validator.check_schema(published)


def test_the_schema_of_manifests_takes_what_we_write_and_nothing_else(tmp_path):
    judge = jsonschema.Draft202012Validator(_manifest.json_schema())
    old = json.loads((GOLDEN / "bundle_1" / "manifest.json").read_text())
    judge.validate(old)
    judge.validate(_manifest.sealed(Bundle.load(GOLDEN / "bundle_1").manifest))
    for change in (
        {"schema": "hetero.bundle/2"},
        {"role": "oracle"},
        {"surprise": 1},
        {"sha256": "none"},
        {"space_digest": "AB" * 32},
        {"files": [{**old["files"][0], "surprise": 1}]},
    ):
        assert not judge.is_valid({**old, **change}), change
    assert not judge.is_valid({k: v for k, v in old.items() if k != "sha256"})
