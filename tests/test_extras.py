"""What is not installed is named with the command that installs it, before anything long begins."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from hetero import errors
from hetero.errors import EXTRAS, MissingExtraError, missing_extra, need

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: `hetero` in an interpreter for which nothing but the base dependencies is installed.
BARE = """
import sys
from importlib.abc import MetaPathFinder
from hetero.errors import EXTRAS
gone = {m for modules in EXTRAS.values() for m in modules}
class Gone(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
import importlib.util
find = importlib.util.find_spec
errors = sys.modules["hetero.errors"]
errors.find_spec = lambda name: None if name in gone else find(name)
from hetero.cli import main
main()
"""


def hetero(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", BARE, *arguments],
        cwd=folder,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "",
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder.with_name(f"{folder.name}-logs")),
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("line", "extras"),
    [
        ("demo", "train,onnx,tflite,coreml,report"),
        ("train gallery", "train"),
        ("adopt resnet:width=8 --data emoji", "train"),
        ("pct train --data emoji", "train"),
        ("check nowhere --gallery nowhere", "train,report"),
        ("bench nowhere", "report"),
        ("search nowhere --max-macs 1M", "train,nas"),
    ],
)
def test_a_command_without_its_extra_is_one_line_with_what_to_run(line, extras, tmp_path):
    code, said = hetero(tmp_path, *line.split())
    assert (code, len(said)) == (2, 1), said
    assert said[0].endswith(f"not installed; run: pip install 'hetero[{extras}]'")
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_the_table_of_extras_is_that_of_the_project():
    # Modules are matched to distributions by what is installed here; a module that is not is left.
    owners = metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        asked = {
            re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-")
            for line in PROJECT["optional-dependencies"][extra]
        }
        for module in modules:
            if module in owners:
                names = {o.lower().replace("_", "-") for o in owners[module]}
                assert names & asked, f"{extra}: {module} comes with {names}, not {asked}"


def test_several_missing_extras_are_one_command(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name != "onnx" else object())
    with pytest.raises(MissingExtraError) as caught:
        need("train", "onnx")
    assert str(caught.value) == (
        "torch, accelerate, onnxscript, onnxruntime are not installed; "
        "run: pip install 'hetero[train,onnx]'"
    )
    need("an extra of somebody's own format")


def test_a_module_of_no_extra_is_not_explained_away():
    assert missing_extra(ModuleNotFoundError("x", name="a_library_nobody_has")) is None
    found = missing_extra(ModuleNotFoundError("x", name="torch.nn"))
    assert str(found) == "torch is not installed; run: pip install 'hetero[train]'"


def test_the_doctor_names_versions_other_than_those_tested(monkeypatch):
    from hetero.stages import inspecting

    ours = dict(inspecting.tested())
    assert ours["jinja2"] == inspecting.version("jinja2")
    assert [s for c, s, *_ in inspecting.installation() if c == "extra report"] == ["ok"]
    monkeypatch.setattr(inspecting, "tested", lambda: {**ours, "jinja2": "1.0"})
    found = {c: rest for c, *rest in inspecting.installation()}
    status, told, fix = found["extra report"]
    assert (status, told.partition("; ")[2]) == ("warn", "tested with Jinja2 1.0")
    assert fix.startswith("pip install -c ")
    assert fix.endswith("constraints.txt 'hetero[report]'")
    assert found["extra fleet"][0] == "ok"
