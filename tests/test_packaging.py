"""What is built is what is here, and nothing happens on import."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hetero

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPED = {"hetero.export": "export", "hetero.devices": "devices"}

#: What must not be imported before it is needed: it costs seconds, or threads, or memory.
HEAVY = {
    *("numpy", "scipy", "torch", "jax", "onnx", "onnxruntime", "ai_edge_litert", "litert_torch"),
    *("coremltools", "PIL", "matplotlib", "jinja2", "pydantic", "rich", "safetensors", "timm"),
}


def python(*arguments: str | Path, **variables: str) -> str:
    """What a fresh interpreter prints; the checkout is importable whether installed or not."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-P", *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def folders() -> dict[str, Path]:
    """Package name -> folder, for every folder with an __init__.py."""
    found = {}
    for top, package in (("hetero", "hetero"), *((d, p) for p, d in MAPPED.items())):
        for init in (ROOT / top).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / top).parts
            if top == "hetero" and inside[:1] in (("export",), ("devices",)):
                continue  # the links, which some Pythons follow and some do not
            found[".".join((package, *inside))] = init.parent
    return found


def test_every_folder_of_the_package_is_listed_and_nothing_else():
    # A folder that is forgotten is missing from the wheel without a word.
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(folders())


def test_the_two_folders_beside_are_mapped_into_the_package():
    assert PROJECT["tool"]["setuptools"]["package-dir"] == MAPPED
    for package, folder in MAPPED.items():
        link = ROOT / "hetero" / folder
        # A clone without symbolic links builds and runs all the same.
        if link.is_symlink():
            assert os.readlink(link) == f"../{folder}", package


def test_every_file_that_is_not_python_is_package_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    for package, folder in folders().items():
        for path in folder.rglob("*"):
            inside = path.relative_to(folder).as_posix()
            nearest = next(p for p in (path.parent, *path.parents) if (p / "__init__.py").exists())
            if not path.is_file() or path.suffix in (".py", ".pyc") or nearest != folder:
                continue
            listed = any(fnmatch.fnmatch(inside, p) for p in patterns.get(package, ()))
            assert listed or path.name == "README.md", f"{path} is not in [package-data]"


def test_every_pattern_of_package_data_finds_something():
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            assert list(folders()[package].glob(pattern)), f"{package}: {pattern}"


def test_the_version_is_the_newest_of_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[?(?:Unreleased, )?(\d+\.\d+\.\d+)", text, re.MULTILINE)
    assert newest
    assert hetero.__version__ == newest[1]
    assert PROJECT["project"]["dynamic"] == ["version"]
    try:
        installed = importlib.metadata.version("hetero")
    except importlib.metadata.PackageNotFoundError:
        return  # run from a checkout on the path
    assert installed == hetero.__version__


#: What cannot be installed beside the rest, and so is neither in "all" nor locked: see pyproject.
APART = {"sign"}


def test_every_requirement_has_one_tested_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", pin) for pin in pins), "one form"
    pinned = {pin.partition("==")[0] for pin in pins}
    assert len(pinned) == len(pins)
    extras = PROJECT["project"]["optional-dependencies"]
    beside = [x for name, extra in extras.items() if name not in APART for x in extra]
    for line in (*PROJECT["project"]["dependencies"], *beside):
        name = re.match(r"[A-Za-z0-9._-]+", line)[0].lower()
        assert name == "hetero" or name in pinned, f"{line} is not locked; run `make lock`"


def test_all_extras_but_those_of_developers_are_in_all():
    extras = PROJECT["project"]["optional-dependencies"]
    (line,) = extras["all"]
    left_out = {"all", "dev", "docs", *APART}
    assert set(re.search(r"\[(.*)\]", line)[1].split(",")) == set(extras) - left_out


def test_every_extra_that_an_error_names_exists():
    # The second argument of errors.require, and what modules call EXTRA, as they stand in the text.
    extras = PROJECT["project"]["optional-dependencies"]
    found = set()
    for folder in folders().values():
        for path in folder.glob("*.py"):
            text = path.read_text()
            found |= set(re.findall(r'require\(\s*"[\w.]+",\s*"(\w+)"', text))
            found |= set(re.findall(r'^EXTRA(?:: \w+)? = "(\w+)"', text, re.MULTILINE))
    assert found
    assert found <= set(extras)


@pytest.mark.parametrize("how", ["", "--bare"], ids=["with extras", "without any extra"])
def test_every_module_can_be_imported(how):
    if not how:
        pytest.importorskip("torch", reason="with the extras: PyTorch is not installed")
    out = python(ROOT / "tests" / "import_all.py", *filter(None, [how]))
    assert int(out.split()[0]) > 50


def test_importing_the_package_loads_nothing_heavy_and_says_nothing():
    code = "import sys, hetero; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = set(python("-c", code).split())
    assert "hetero" in loaded
    assert not loaded & HEAVY


def test_importing_the_command_line_loads_nothing_heavy():
    code = "import sys, hetero.cli; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    assert not set(python("-c", code).split()) & HEAVY


def test_importing_every_core_module_changes_nothing_in_the_process():
    code = """
import os, random, sys, threading, warnings
import jaxtyping, numpy, pydantic  # what these do to the process is theirs
before = dict(os.environ), random.getstate(), threading.active_count(), list(warnings.filters)
import hetero.check, hetero.cli, hetero.data, hetero.evaluate, hetero.metrics, hetero.render
import hetero.export, hetero.devices, hetero.bundle, hetero.retrieval
after = dict(os.environ), random.getstate(), threading.active_count(), list(warnings.filters)
print([a == b for a, b in zip(before, after)])
"""
    assert python("-W", "error", "-c", code).strip() == "[True, True, True, True]"


def test_the_public_names_are_there_few_and_all_of_them():
    pytest.importorskip("torch", reason="some of them train; PyTorch is not installed")
    assert len(hetero.__all__) <= 20
    assert hetero.__all__ == sorted(hetero.__all__)
    for name in hetero.__all__:
        assert getattr(hetero, name).__module__.startswith("hetero.")
    with pytest.raises(AttributeError, match="no attribute 'Embedings'"):
        _ = hetero.Embedings


def test_arrows_go_one_way():
    # devices -> export -> hetero; what sits on top of all three is named here.
    on_top = {"cli", "demo.py", "stages"}
    for package, folder in folders().items():
        for path in folder.glob("*.py"):
            used = set(
                re.findall(
                    r"^\s*(?:from|import) (hetero\.(?:export|devices))", path.read_text(), re.M
                )
            )
            if package.startswith("hetero.devices"):
                continue
            if package.startswith("hetero.export"):
                assert "hetero.devices" not in used, path
            elif path.name not in on_top and folder.name not in on_top:
                assert not used, path


def test_no_pickle_is_ever_loaded():
    for folder in folders().values():
        for path in folder.glob("*.py"):
            text = path.read_text()
            assert not re.search(r"^\s*(import|from) (pickle|joblib|shelve|marshal)\b", text, re.M)
            assert "allow_pickle=True" not in text, path
            assert "weights_only=False" not in text, path
            for call in re.findall(r"torch\.load\(([^\n]*)", text):
                assert "weights_only=True" in call, path


def test_the_licence_is_apache_2():
    assert PROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_no_python_is_claimed_that_is_not_tested():
    # What docs/stability.md calls tested is what the classifiers say.
    text = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    tested = re.search(r"^\| Python \| ([^|]+) \|", text, re.MULTILINE)
    assert tested
    claimed = {
        c.rpartition(" ")[2]
        for c in PROJECT["project"]["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", c)
    }
    assert claimed == set(tested[1].split(", "))
