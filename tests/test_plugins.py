from __future__ import annotations

import sys

import pytest

from hetero import _plugins
from hetero.errors import (
    BundleError,
    ConfigError,
    DeviceError,
    HeteroError,
    MissingExtraError,
    require,
)

METRICS = "hetero.metrics"


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A user's own folder of modules, on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("")
    (tmp_path / "theirs" / "mine.py").write_text("ANSWER = 42\n")
    (tmp_path / "theirs" / "needy.py").write_text("import a_library_nobody_has\n")
    (tmp_path / "theirs" / "broken.py").write_text("1 / 0\n")
    yield tmp_path / "theirs"
    for name in [n for n in sys.modules if n.partition(".")[0] == "theirs"]:
        del sys.modules[name]


def test_the_listing_of_a_folder_is_the_list_of_its_variants():
    found = _plugins.names(METRICS)
    assert list(found) == sorted(found)
    assert {"recall", "average_precision"} <= set(found)
    assert not [name for name in found if name.startswith("_")]


def test_names_are_found_without_importing_what_they_name():
    for name in _plugins.names("hetero.export"):
        sys.modules.pop(f"hetero.export.{name}", None)
    _plugins.names("hetero.export")
    assert not [n for n in _plugins.names("hetero.export") if f"hetero.export.{n}" in sys.modules]


def test_a_variant_is_loaded_by_its_file_name():
    assert _plugins.load(METRICS, "recall").__name__ == "hetero.metrics.recall"


def test_somebody_else_s_variant_is_loaded_by_its_dotted_path(theirs):
    assert _plugins.load(METRICS, "theirs.mine").ANSWER == 42


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"unknown metric 'recal'; there are .*\brecall\b"):
        _plugins.load(METRICS, "recal")


@pytest.mark.parametrize("name", ["", ".", "..", ".recall", "_plugins", "recall/", "recall\0"])
def test_what_is_no_name_at_all_is_refused_in_the_same_way(name):
    with pytest.raises(ConfigError, match="unknown metric"):
        _plugins.load(METRICS, name)


@pytest.mark.parametrize(
    "name", ["nobody.has.this", "theirs.nothing", "theirs.mine.deeper", "theirs..mine", "theirs."]
)
def test_a_dotted_path_to_nothing_is_said(theirs, name):
    with pytest.raises(ConfigError, match="no module of this dotted path"):
        _plugins.load(METRICS, name)


def test_a_mistake_inside_somebody_else_s_module_is_shown_as_it_is(theirs):
    with pytest.raises(ModuleNotFoundError, match="a_library_nobody_has"):
        _plugins.load(METRICS, "theirs.needy")
    with pytest.raises(ZeroDivisionError):
        _plugins.load(METRICS, "theirs.broken")


def test_a_library_that_is_missing_inside_a_path_that_begins_alike_is_not_mistaken_for_it(theirs):
    (theirs / "twin.py").write_text("import thei\n")
    with pytest.raises(ModuleNotFoundError, match="'thei'"):
        _plugins.load(METRICS, "theirs.twin")


def test_a_module_in_the_working_folder_is_found_and_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "only_here_7391.py").write_text("import json\n")
    (tmp_path / "json.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p not in ("", ".")])
    assert _plugins.own("only_here_7391").json.loads("1") == 1
    with pytest.raises(ModuleNotFoundError, match="nowhere_7391"):
        _plugins.own("nowhere_7391.module")


def test_a_missing_optional_library_says_what_to_install():
    with pytest.raises(MissingExtraError) as caught:
        require("a_library_nobody_has.part", "onnx")
    assert str(caught.value) == (
        "a_library_nobody_has is not installed; run: pip install 'hetero[onnx]'"
    )


def test_a_library_that_misses_one_of_its_own_is_not_called_missing(theirs):
    with pytest.raises(ModuleNotFoundError, match="a_library_nobody_has"):
        require("theirs.needy", "onnx")


def test_an_optional_library_that_is_there_is_given():
    assert require("json.decoder", "onnx").__name__ == "json.decoder"


def test_every_error_has_the_exit_code_of_who_has_to_act():
    def tree(kind):
        return [kind, *(k for child in kind.__subclasses__() for k in tree(child))]

    codes = {kind.__name__: kind.exit_code for kind in tree(HeteroError)}
    assert {code for name, code in codes.items()} <= {1, 2, 4, 130}
    assert issubclass(BundleError, ConfigError)
    assert codes["BundleError"] == codes["MissingExtraError"] == 2
    assert codes["TrainingError"] == codes["ExportError"] == 1
    assert codes["DeviceError"] == codes["StorageError"] == 4
    assert codes["Interrupted"] == 130


def test_the_text_of_a_device_error_begins_with_the_device_s_name():
    assert str(DeviceError("pi:garage", "no answer")) == "pi:garage: no answer"
