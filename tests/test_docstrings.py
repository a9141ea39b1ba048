"""Every public module, class, function and method says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("hetero", "export", "devices")


def public(top: str) -> list[Path]:
    """Modules below a folder that have no underscore anywhere in their path."""
    found = []
    for path in sorted((ROOT / top).rglob("*.py")):
        inside = path.relative_to(ROOT / top)
        linked = top == "hetero" and inside.parts[0] in ("export", "devices")
        private = any(p.startswith("_") for p in inside.parts if p != "__init__.py")
        if not linked and not private:
            found.append(path)
    return found


def silent(tree: ast.Module) -> Iterator[str]:
    """Public names without a docstring; "" is the module itself."""
    if not ast.get_docstring(tree):
        yield ""
    yield from _silent(tree, "")


def _silent(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try | ast.With):
            yield from _silent(child, prefix)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        # Of overloads and setters the one that does the work, or gives the value, speaks.
        marks = {ast.unparse(d).rpartition(".")[2] for d in child.decorator_list}
        if child.name.startswith("_") or marks & {"overload", "setter"}:
            continue
        if not ast.get_docstring(child):
            yield prefix + child.name
        if isinstance(child, ast.ClassDef):
            yield from _silent(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("top", TOPS)
def test_every_public_name_has_a_docstring(top: str) -> None:
    modules = public(top)
    assert modules
    missing = [
        f"{path.relative_to(ROOT)}: {name or 'the module'}"
        for path in modules
        for name in silent(ast.parse(path.read_text()))
    ]
    assert missing == []


def test_a_name_without_a_docstring_is_seen() -> None:
    text = """
class Named:
    "Yes."
    def method(self): ...
    def _own(self): ...
    @property
    def value(self):
        "Yes."
    @value.setter
    def value(self, to): ...

class Bare: ...

if True:
    def inside(): ...

def spoken():
    "Yes."
    def nested(): ...
"""
    assert list(silent(ast.parse(text))) == ["", "Named.method", "Bare", "inside"]
