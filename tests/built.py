"""What was built is whole and the same each time; needs the standard library alone.

    python tests/built.py DIST AGAIN

DIST holds an sdist and a wheel, AGAIN a wheel made once more from that sdist.
"""

from __future__ import annotations

import hashlib
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: What an sdist has to hold beside the package.
BESIDE = ("LICENSE", "README.md", "pyproject.toml", "hetero/data/assets/NOTICE")


def of_the_checkout() -> dict[str, Path]:
    """Path in the wheel -> file, for all that the package is made of."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings = project["tool"]["setuptools"]
    found = {}
    for package in settings["packages"]:
        folder = ROOT / settings["package-dir"].get(package, package.replace(".", "/"))
        inside = package.replace(".", "/")
        patterns = ("*.py", *settings["package-data"].get(package, ()))
        for path in (p for pattern in patterns for p in folder.glob(pattern)):
            found[f"{inside}/{path.relative_to(folder).as_posix()}"] = path
    return found


def only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder}: {len(found)} of {pattern}, not one")
    return found[0]


def main(dist: Path, again: Path) -> None:
    wheel, second = only(dist, "*.whl"), only(again, "*.whl")
    wanted = of_the_checkout()
    with zipfile.ZipFile(wheel) as file:
        held = {n: file.read(n) for n in file.namelist() if ".dist-info/" not in n}
    if held.keys() != wanted.keys():
        raise SystemExit(f"{wheel.name}: {sorted(held.keys() ^ wanted.keys())} in one place alone")
    for name, path in wanted.items():
        if held[name] != path.read_bytes():
            raise SystemExit(f"{wheel.name}: {name} is not what is in the checkout")
    with tarfile.open(only(dist, "*.tar.gz")) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    asked = {path.relative_to(ROOT).as_posix() for path in wanted.values()} | set(BESIDE)
    if missing := sorted(asked - inside):
        raise SystemExit(f"the sdist lacks {missing}")
    if wheel.read_bytes() != second.read_bytes():
        raise SystemExit(f"{wheel.name}: built twice, two different files")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    print(f"{wheel.name}: {len(held)} files, twice SHA-256 {digest}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
