from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from hetero import snippets
from hetero.errors import ConfigError
from hetero.preprocess import Preprocess

FILTERS = ("box", "bilinear", "bicubic", "lanczos")
SPEC = snippets.Spec(
    Preprocess(size_px=17),
    "gallery@0123456789ab",
    "0123456789abcdef" * 4,
    4,
    "a" * 64,
    "model.int8.onnx",
    "b" * 64,
    "onnx",
    "uint8_nhwc",
    0.98,
)


def spec(**changes):
    return replace(SPEC, preprocess=replace(SPEC.preprocess, **changes))


def pillow(rgb, preprocess):
    """Pillow along one axis at a time, across first: its order of both differs by version."""
    from PIL import Image

    if preprocess.fit == "centre":
        height, width = rgb.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        rgb = np.ascontiguousarray(rgb[top : top + side, left : left + side])
    kernel = Image.Resampling[preprocess.resize.upper()]
    size = preprocess.size_px
    wide = Image.fromarray(rgb).resize((size, rgb.shape[0]), kernel)
    return np.asarray(wide.resize((size, size), kernel))


def pictures(count=12):
    rng = np.random.default_rng(0)
    for at in range(count):
        height, width = rng.integers(1, 90, 2)
        rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield (rgb > 127).astype(np.uint8) * np.uint8(255) if at % 3 == 0 else rgb
    yield rng.integers(0, 256, (17, 17, 3), dtype=np.uint8)
    yield rng.integers(0, 256, (17, 40, 3), dtype=np.uint8)


@pytest.fixture
def python(tmp_path):
    """The Python snippet of a spec, imported."""

    def load(given):
        path = tmp_path / "embed.py"
        path.write_text(snippets.module("python").render(given))
        found = importlib.util.spec_from_file_location("embed", path)
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("fit", ["centre", "squash"])
@pytest.mark.parametrize("resize", FILTERS)
def test_the_python_snippet_gives_pillow_s_pixels_bit_by_bit(python, resize, fit):
    given = spec(resize=resize, fit=fit)
    module = python(given)
    for rgb in pictures():
        right = pillow(rgb, given.preprocess)
        assert np.array_equal(module.pixels(rgb), right), rgb.shape
        if fit == "centre" or rgb.shape[0] <= rgb.shape[1]:
            # Pillow 13 resizes tall pictures down first, which rounds in another order.
            assert np.array_equal(given.preprocess.pixels(rgb), right), rgb.shape


def test_the_python_snippet_normalises_as_the_reference_does(python):
    given = replace(spec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    module = python(replace(given, input="float32_nchw"))
    pixels = next(iter(pictures()))[:17, :17]
    pixels = given.preprocess.pixels(pixels)
    assert np.array_equal(module.model_input(pixels), given.preprocess.tensor(pixels[None]))


def test_the_python_snippet_imports_no_pillow_for_its_resize(tmp_path):
    (tmp_path / "embed.py").write_text(snippets.module("python").render(SPEC))
    code = (
        "import sys, numpy as np; sys.modules['PIL'] = None\n"
        "import embed; print(embed.pixels(np.zeros((9, 30, 3), np.uint8)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "(17, 17, 3)", done.stderr


def canary_folder(folder, given, damage=0):
    """Canaries of made-up vectors; pixels may be off by so many levels."""
    folder.mkdir()
    index, lines = [], [f"{given.space_digest} {given.preprocess.sha256} {given.file_sha256}"]
    for at, rgb in enumerate(pictures(6)):
        pixels = pillow(rgb, given.preprocess).copy()
        pixels[0, 0, 0] = (int(pixels[0, 0, 0]) + damage) % 256
        vector = np.eye(given.dim, dtype=np.float32)[at % given.dim]
        entry = {"picture": f"c{at}.png"}
        for step, array in (("rgb", rgb), ("pixels", pixels), ("vector", vector)):
            (folder / f"c{at}.{step}.bin").write_bytes(array.tobytes())
            entry[step] = {
                "file": f"c{at}.{step}.bin",
                "dtype": str(array.dtype),
                "shape": array.shape,
            }
        index.append(entry)
        lines.append(f"c{at} {rgb.shape[0]} {rgb.shape[1]}")
    head = {
        "space_digest": given.space_digest,
        "preprocess_sha256": given.preprocess.sha256,
        "file_sha256": given.file_sha256,
    }
    (folder / "canaries.json").write_text(json.dumps({**head, "canaries": index}))
    (folder / "canaries.txt").write_text("\n".join(lines) + "\n")


def ran(language, folder):
    """Exit code and output of a language's self-check, or a skip."""
    tools = {
        "python": [[sys.executable, "embed.py"]],
        "javascript": [["node", "embed.mjs"]],
        "kotlin": [
            ["kotlinc", "Embed.kt", "-include-runtime", "-d", "embed.jar"],
            ["java", "-jar", "embed.jar", "canaries"],
        ],
        "swift": [
            ["swiftc", "-D", "SELF_CHECK", "-parse-as-library", "Embed.swift", "-o", "embed"],
            ["./embed", "canaries"],
        ],
    }[language]
    if shutil.which(tools[0][0]) is None:
        pytest.skip(f"{tools[0][0]} is not installed")
    for command in tools:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            break
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("language", snippets.languages())
@pytest.mark.parametrize("resize", FILTERS)
def test_the_self_check_of_every_language_passes_and_sees_one_level(language, resize, tmp_path):
    given = spec(resize=resize, fit="squash" if resize == "lanczos" else "centre")
    variant = snippets.module(language)
    (tmp_path / variant.FILE).write_text(variant.render(given))
    canary_folder(tmp_path / "canaries", given)
    code, said = ran(language, tmp_path)
    assert (code, "agree" in said) == (0, True), said
    shutil.rmtree(tmp_path / "canaries")
    canary_folder(tmp_path / "canaries", given, damage=1)
    code, said = ran(language, tmp_path)
    assert code == 1, said
    assert "up to 1 levels off" in said


def test_the_self_check_sees_vectors_of_another_model(python, tmp_path):
    module = python(SPEC)
    canary_folder(tmp_path / "c", SPEC)
    order = iter(range(100))
    assert module.self_check(tmp_path / "c", lambda _: np.eye(4)[next(order) % 4]) == []
    assert len(module.self_check(tmp_path / "c", lambda _: np.ones(4))) == 8


def test_the_self_check_tells_of_pixels_of_another_size(python, tmp_path):
    given = replace(SPEC, preprocess=replace(SPEC.preprocess, size_px=19))
    canary_folder(tmp_path / "c", given)
    index = json.loads((tmp_path / "c/canaries.json").read_text())
    index["preprocess_sha256"] = SPEC.preprocess.sha256
    (tmp_path / "c/canaries.json").write_text(json.dumps(index))
    mistakes = python(SPEC).self_check(tmp_path / "c")
    assert len(mistakes) == len(index["canaries"])
    assert mistakes[0] == "c0.png: pixels (17, 17, 3), expected (19, 19, 3)"


def test_the_self_check_refuses_canaries_of_another_file(python, tmp_path):
    canary_folder(tmp_path / "c", replace(SPEC, file_sha256="c" * 64))
    (mistake,) = python(SPEC).self_check(tmp_path / "c")
    assert "another space, preprocessing or file" in mistake


@pytest.mark.parametrize("resize", FILTERS)
@pytest.mark.parametrize("language", snippets.languages())
def test_every_language_holds_the_same_constants_and_all_steps(language, resize):
    given = spec(resize=resize, mean=(0.1, 0.25, 0.5), std=(1.0, 0.75, 0.2))
    source = snippets.module(language).render(given)
    p = given.preprocess
    for name, value in (
        ("SPACE_ID", f'"{given.space_id}"'),
        ("SPACE_DIGEST", f'"{given.space_digest}"'),
        ("PREPROCESS_SHA256", f'"{p.sha256}"'),
        ("WEIGHTS_SHA256", f'"{given.weights_sha256}"'),
        ("FILE_SHA256", f'"{given.file_sha256}"'),
        ("INPUT", '"uint8_nhwc"'),
        ("DIM", "4"),
        ("SIZE", "17"),
        ("RESIZE", f'"{resize}"'),
        ("SUPPORT", str(snippets.SUPPORT[resize])),
        ("FIT", '"centre"'),
        ("COSINE_LEAST", "0.980000000"),
    ):
        assert re.search(rf"\b{name}(: \w+)? = {re.escape(value)}", source), name
    for name, wanted in (("MEAN", p.mean), ("STD", p.std)):
        (found,) = re.findall(
            rf"\b{name}(?:: \[Float\])? = (?:floatArrayOf)?[(\[]([^)\]]*)", source
        )
        assert tuple(float(x.rstrip("f")) for x in found.split(", ")) == wanted
    # Half a unit and the unit of 22 bits, and that no placeholder is left.
    assert "2097152" in source.replace("_", "")
    assert "4194304" in source
    assert not re.search(r"@[A-Z_]+@", source)


@pytest.mark.parametrize("language", snippets.languages())
def test_a_language_offers_what_the_package_promises(language):
    variant = snippets.module(language)
    assert variant.FILE in variant.RUN
    assert snippets.module(language).render(SPEC) == variant.render(SPEC)


def test_a_name_that_would_be_code_is_refused():
    for name in ('x"; evil()', "x\\", "x\ny", "${x}"):
        with pytest.raises(ConfigError, match="cannot stand in source code"):
            replace(SPEC, space_id=name).constants()


def test_an_unknown_language_lists_those_there_are():
    with pytest.raises(ConfigError, match="javascript, kotlin, python, swift"):
        snippets.module("cobol")


def test_a_template_that_asks_for_what_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="asks for NOTHING"):
        snippets.fill("x = @NOTHING@", {})
