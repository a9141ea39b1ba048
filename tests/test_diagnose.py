"""`hetero.diagnose`: canaries, wrong steps, evidence and verdicts, on a net made in a moment."""

from __future__ import annotations

import functools
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps
from toys import picture

from hetero import diagnose as d
from hetero.bundle import Probe
from hetero.diagnose import _evidence, _pipeline, _search
from hetero.diagnose.hypotheses import names, variants
from hetero.errors import ConfigError, DataError
from hetero.preprocess import Preprocess, decode

SPEC = Preprocess(16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
torch = pytest.importorskip("torch", reason="needs the extra 'train'")


class Net:
    """An engine with random weights whose batch norms have seen pictures."""

    def __init__(self, pixels: np.ndarray) -> None:
        nn = torch.nn
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.net = nn.Sequential(
                *(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
                *(nn.Conv2d(12, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU()),
                *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 16), nn.BatchNorm1d(16)),
            )
            for _ in range(30):
                self.net(torch.from_numpy(SPEC.tensor(pixels)))
        self.net.eval().requires_grad_(False)

    def rows(self, tensor: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return torch.nn.functional.normalize(self.net(torch.from_numpy(tensor))).numpy()

    def file_rows(self, pixels: np.ndarray) -> np.ndarray | None:
        return None


@functools.cache
def probe() -> Probe:
    pixels = np.stack([picture(n, which) for n in range(12) for which in range(2)])
    return Probe(tuple(f"p{i}" for i in range(len(pixels))), pixels, np.zeros((24, 16), "f4"))


@functools.cache
def known() -> d.Library:
    return d.library(d.canaries(probe(), SPEC), SPEC, Net(probe().pixels))


def recall(rows: np.ndarray) -> float:
    """Share of the canaries that find the vector of the probe picture they show."""
    stored = known().engine.rows(SPEC.tensor(probe().pixels))
    base = [probe().ids.index(p.base) for p in known().pictures]
    return float(((rows @ stored.T).argmax(axis=1) == base).mean())


def device(**steps) -> d.States:
    """What a device gives whose steps are these."""
    files = [p.data for p in known().pictures]
    wrong = replace(d.reference(), **steps)
    return _pipeline.run(wrong, SPEC, known().engine, "decode", files)


def trace(rows: np.ndarray, **more) -> d.Trace:
    return d.Trace(tuple(p.name for p in known().pictures), rows.astype(np.float32), **more)


def solved(rows: np.ndarray, **more) -> d.Diagnosis:
    return d.diagnose(known(), trace(rows, **more), recall)


# -- the pipeline and the canaries ------------------------------------------------------------


def test_the_steps_put_together_are_the_reference_preprocessing_bit_by_bit():
    states = known().states
    for at, canary in enumerate(known().pictures):
        rgb = decode(canary.data)
        assert np.array_equal(states.decoded[at], rgb), canary.name
        assert np.array_equal(states.pixels[at], SPEC.pixels(rgb)), canary.name
    assert np.array_equal(states.tensor, SPEC.tensor(states.pixels))


@pytest.mark.parametrize("fit", ["centre", "squash"])
def test_canaries_are_the_same_bytes_every_time_and_have_one_name_each(fit):
    spec = replace(SPEC, fit=fit)
    first, again = d.canaries(probe(), spec), d.canaries(probe(), spec)
    assert first == again
    assert len({c.name for c in first}) == len(first) > 100


@pytest.mark.parametrize("tag", range(1, 9))
def test_turning_is_what_pillow_makes_of_the_orientation(tag):
    rgb = picture(3, tag)[:, :11]
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(rgb).save(buffer, "PNG", exif=exif)
    right = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    assert np.array_equal(_pipeline.turn(rgb, tag), right)
    lying, found = _pipeline.read_file(buffer.getvalue())
    assert found == tag
    assert np.array_equal(lying, rgb)


def test_no_orientation_crop_or_resize_moves_a_canary_that_says_it_is_not_moved_by_it():
    tried = 0
    for variant in variants(SPEC):
        if variant.stage in ("orientation", "resize") or "px too" in variant.what:
            pixels = device(**{variant.stage: variant.step}).pixels
            for at, canary in enumerate(known().pictures):
                if variant.stage not in canary.moved_by:
                    same = np.array_equal(pixels[at], known().states.pixels[at])
                    assert same, (variant.what, canary.name)
                    tried += 1
    assert tried > 500


def test_every_hypothesis_says_a_stage_a_cause_and_a_fix_and_moves_something():
    unmoved = set()
    for v in variants(SPEC):
        assert v.stage in d.STAGES
        assert v.what
        assert v.fix
        rows = device(**{v.at: v.step}).rows
        if not (_evidence.departure(rows, known().home) > 1e-9).any():
            unmoved.add(v.what)
    assert not unmoved
    assert len(names()) > 15


# -- wrong steps against the libraries that do the same ---------------------------------------


@pytest.mark.parametrize(
    ("what", "mode", "corners"),
    [
        ("bilinear without antialiasing, half-pixel centres", "bilinear", False),
        ("bilinear without antialiasing, corners aligned", "bilinear", True),
        ("bicubic without antialiasing, half-pixel centres", "bicubic", False),
        ("bicubic without antialiasing, corners aligned", "bicubic", True),
        ("nearest pixel, half-pixel centres", "nearest-exact", None),
        ("nearest pixel, pixel corners (half a pixel off)", "nearest", None),
    ],
)
@pytest.mark.parametrize("side", [16 * 3, 41, 11])
def test_a_resize_without_antialiasing_is_pytorchs(what, mode, corners, side):
    rgb = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    step = next(v.step for v in variants(SPEC) if v.what == what)
    nchw = torch.from_numpy(rgb).permute(2, 0, 1)[None].double()
    kind = {} if corners is None else {"align_corners": corners}
    right = torch.nn.functional.interpolate(nchw, size=(16, 16), mode=mode, **kind)
    right = right.clamp(0, 255)[0].permute(1, 2, 0).numpy()
    if mode == "nearest-exact" and side == 16 * 3:
        assert np.array_equal(step(rgb, SPEC), right)  # no ties: every place is a pixel's middle
    elif mode != "nearest-exact":
        assert np.abs(step(rgb, SPEC) - right).max() <= 0.5 + 1e-6


def test_a_resize_that_cuts_off_is_never_above_the_one_that_rounds():
    step = next(v.step for v in variants(SPEC) if "cut off" in v.what)
    rgb = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    gap = SPEC.pixels(rgb).astype(int) - step(rgb, SPEC)
    assert set(np.unique(gap)) <= {0, 1}
    assert 0.3 < gap.mean() < 0.7


def test_imagenets_constants_by_hand():
    step = next(v.step for v in variants(SPEC) if "ImageNet" in v.what and "Caffe" not in v.what)
    pixels = np.full((1, 1, 1, 3), (255, 0, 51), dtype=np.uint8)
    right = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert step(pixels, SPEC)[0, 0, 0] == pytest.approx(right, rel=1e-6)


# -- evidence ---------------------------------------------------------------------------------


def test_departure_is_one_less_the_cosine_and_two_where_there_is_no_direction():
    a = np.asarray([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [np.nan, 1.0], [1.0, 0.0]])
    b = np.asarray([[4.0, 3.0], [-2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    assert _evidence.departure(a, b) == pytest.approx([1 - 24 / 25, 2, 2, 2, 0], abs=1e-6)


def test_a_departure_far_below_float32s_rounding_of_one_is_not_lost():
    a = np.asarray([[1.0, 0.0]])
    b = np.asarray([[1.0, 1e-4]])
    assert _evidence.departure(a, b)[0] == pytest.approx(0.5e-8, rel=0.01)


def test_the_pattern_of_moved_pictures_names_the_stage_that_alone_reaches_them():
    pictures = known().pictures

    def named(*kinds: str) -> str:
        out = np.asarray([p.kind.rstrip("0123456789") in kinds for p in pictures])
        return (*_evidence.pattern(pictures, out)[0], "")[0]

    assert named("exif") == "orientation"
    assert named("exif", "jpeg") == "decode"
    assert named("alpha") == "decode"
    assert named("wide", "tall", "photo") == "crop"
    assert named("large", "double", "small", "photo") == "resize"
    coloured = {p.kind.rstrip("0123456789") for p in pictures} - {"flat", "grey"}
    assert named(*coloured) == "colour"
    assert named("flat") == ""  # what moves a flat picture moves all
    assert named(*{p.kind.rstrip("0123456789") for p in pictures}) == ""


def test_a_band_is_no_wider_for_a_broken_file():
    right = np.eye(16)[np.arange(40) % 16]
    broken = -right
    assert _evidence.allowed(right, broken, "fp32").max() < 1e-2
    assert _evidence.allowed(right, right, "fp32") == pytest.approx(1e-5)


# -- verdicts ---------------------------------------------------------------------------------


def test_the_same_vectors_are_healthy_and_so_is_what_rounding_makes_of_them():
    home = known().home
    noise = np.random.default_rng(0).normal(0, 1e-5, home.shape)
    for rows in (home, home + noise, home.astype(np.float16)):
        found = solved(rows)
        assert (found.verdict, found.faults, found.stage) == ("healthy", (), "")


@pytest.mark.parametrize(
    ("stage", "step", "said"),
    [
        ("colour", lambda rgb: rgb[..., ::-1], "BGR"),
        ("orientation", lambda rgb, tag: rgb, "ignored"),
        ("crop", lambda rgb, spec: rgb, "squashed"),
        ("normalise", lambda x, spec: x.astype(np.float32) / 255, "0..1"),
        ("layout", lambda x: np.ascontiguousarray(x.transpose(0, 3, 2, 1)), "exchanged"),
        ("l2", lambda x: x / np.linalg.norm(x, axis=0), "over the batch"),
        ("output", lambda x: np.roll(x, 1, axis=0), "picture before"),
        ("output", lambda x: np.abs(x), "signs are lost"),
    ],
)
def test_a_fault_is_named_with_its_cause(stage, step, said):
    found = solved(device(**{stage: step}).rows)
    assert (found.verdict, found.stage) == ("fault", stage)
    assert said in found.faults[0].cause
    assert found.faults[0].exact
    assert found.smallest


def test_constants_that_nobody_could_list_are_found_by_fitting():
    mean, std = np.asarray((0.33, 0.47, 0.52)), np.asarray((0.31, 0.21, 0.27))
    found = solved(device(normalise=lambda x, _: ((x / 255 - mean) / std).astype("f4")).rows)
    assert found.stage == "normalise"
    numbers = [float(x.strip(" ;,()")) for x in found.faults[0].cause.split() if x[:2] == "0."]
    assert numbers == pytest.approx([*mean, *std], abs=0.01)


def _again(data: bytes) -> tuple[np.ndarray, int]:
    rgb, tag = _pipeline.read_file(data)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=42)
    return np.asarray(Image.open(buffer)), tag


@pytest.mark.parametrize(
    ("stage", "step", "said"),
    [
        ("decode", _again, "JPEG of quality 42"),
        ("crop", lambda rgb, spec: _pipeline.centre(rgb, spec)[2:-2, 2:-2], "margin of 2 px"),
        ("l2", lambda x: np.sign(x) * np.abs(x) ** 1.7, "power of 1.7"),
        ("output", lambda x: np.clip(np.rint(x * 20), -8, 7), "cut to 16 levels"),
        ("output", lambda x: np.rint(x * 90 + 120), "where 0 is 120"),
        ("output", lambda x: x + 0.4 * np.roll(x, 1, axis=0), "0.40 of the vector before"),
    ],
)
def test_a_number_that_no_list_holds_is_found_by_fitting(stage, step, said):
    found = solved(device(**{stage: step}).rows)
    assert (found.verdict, found.stage) == ("fault", stage)
    assert said in found.faults[0].cause
    assert found.faults[0].exact


def test_noise_is_not_taken_for_a_curve_or_a_mixture():
    home = known().home
    found = solved(home + np.random.default_rng(2).normal(0, 0.05, home.shape))
    assert (found.verdict, found.faults) == ("inconclusive", ())


def test_a_range_hardly_filled_or_cut_off_is_odd_and_one_that_fits_is_not():
    from hetero.diagnose.ranges import Range, odd

    fits = Range("a", 0.0, 4.0, 0.0, 3.4, 0.0003)
    wide, narrow = Range("b", -24.0, 24.0, -3.0, 3.0, 0.0), Range("c", 0.0, 1.0, 0.0, 1.0, 0.08)
    assert odd([fits]) == ()
    lines = odd([fits, wide, narrow])
    assert len(lines) == 2
    assert lines[0].startswith("'c' can hold 0 to 1, and 8.0% of its numbers are cut off")
    assert lines[1].endswith("pictures fill -3 to 3: 12% of it")
    file = d.FileCheck("int8", (1e-4,) * 24, 0.001, sibling=1e-9, ranges=lines)
    found = d.diagnose(known(), None, recall, precision="int8", file=file)
    assert (found.verdict, found.stage) == ("fault", "quantisation")
    assert lines[0] in found.faults[0].evidence


def test_a_file_that_the_runtime_refuses_is_a_verdict_that_says_why():
    found = d.refused("it cannot prepare node 18", "int8", True, 0.6)
    assert (found.verdict, found.stage, found.recall_lost) == ("fault", "quantisation", 0.6)
    assert "node 18" in found.faults[0].cause
    assert d.refused("no", "int8", False, 0.6).stage == "conversion"
    assert d.refused("no", "fp32", False, 0.6).stage == "conversion"


def test_a_shuffled_vector_is_told_from_a_wrong_one():
    order = np.random.default_rng(1).permutation(16)
    found = solved(known().home[:, order])
    assert found.stage == "output"
    assert "another order" in found.faults[0].cause


def test_a_crop_that_no_hypothesis_has_is_named_by_the_pictures_it_moved():
    def far(rgb: np.ndarray, spec: Preprocess) -> np.ndarray:
        side, (height, width) = min(rgb.shape[:2]), rgb.shape[:2]
        top, left = (height - side) // 5, (width - side) // 5
        return rgb[top : top + side, left : left + side]

    found = solved(device(crop=far).rows)
    assert found.stage == "crop"
    assert not found.faults[0].exact
    assert any("untouched" in line for line in found.faults[0].evidence)


def test_nothing_is_named_where_nothing_reproduces_it():
    rng = np.random.default_rng(5)
    mixed = known().home @ rng.normal(size=(16, 16))
    found = solved(mixed)
    assert (found.verdict, found.faults) == ("inconclusive", ())
    assert "pixels.npy" in found.notes[0]
    assert d.EXIT_CODES[found.verdict] == 3


def test_on_the_references_pixels_only_the_runtime_is_left_to_blame():
    rng = np.random.default_rng(5)
    mixed = known().home @ (np.eye(16) + rng.normal(0, 0.1, (16, 16)))
    found = d.diagnose(known(), trace(mixed), recall, device_only=True)
    assert (found.verdict, found.stage) == ("fault", "runtime")


def test_vectors_that_are_not_vectors_are_named_for_what_they_are():
    home = known().home
    assert solved(home * 3).stage == "l2"
    assert "length" in solved(home * 3).faults[0].cause
    short = solved(home[:, :8])
    assert (short.stage, short.faults[0].exact) == ("output", True)
    assert "8 numbers" in short.faults[0].cause
    broken = home.copy()
    broken[3] = np.nan
    assert solved(broken).stage == "runtime"


def test_recorded_pixels_acquit_the_stages_before_and_after_them():
    def weird(rgb: np.ndarray, spec: Preprocess) -> np.ndarray:
        return np.roll(SPEC.pixels(rgb), 2, axis=0)

    states = device(resize=weird)
    blind = solved(states.rows)
    seen = solved(states.rows, pixels=states.pixels)
    assert blind.verdict in ("inconclusive", "fault")
    assert [x.stage for x in seen.losses][-1] == "normalise..output"
    assert seen.losses[-1].cosine_lost == pytest.approx(0, abs=1e-9)
    decoded = dict(zip((p.name for p in known().pictures), states.decoded, strict=True))
    wrong = device(normalise=lambda x, _: x / np.float32(255), resize=weird)
    both = solved(wrong.rows, pixels=wrong.pixels, decoded=decoded, tensor=wrong.tensor)
    assert "normalise" in {f.stage for f in both.faults}


def test_channels_exchanged_after_the_recorded_pixels_are_a_fault_of_colour():
    states = device(normalise=lambda x, spec: _pipeline.standard(x[..., ::-1], spec))
    found = solved(states.rows, pixels=known().states.pixels)
    assert (found.verdict, found.stage) == ("fault", "colour")
    assert "BGR" in found.faults[0].cause


def test_losses_add_up_to_the_whole():
    states = device(colour=lambda rgb: rgb[..., ::-1], normalise=lambda x, _: x / np.float32(255))
    decoded = dict(zip((p.name for p in known().pictures), states.decoded, strict=True))
    found = solved(states.rows, pixels=states.pixels, decoded=decoded, tensor=states.tensor)
    assert {f.stage for f in found.faults} == {"colour", "normalise"}
    total = _evidence.departure(states.rows, known().states.rows).mean()
    assert found.cosine_lost == pytest.approx(total, rel=1e-6)
    assert sum(x.cosine_lost for x in found.losses) == pytest.approx(found.cosine_lost, abs=1e-12)
    assert sum(x.recall_lost for x in found.losses) == pytest.approx(found.recall_lost, abs=1e-12)
    unit = states.rows / np.linalg.norm(states.rows, axis=1, keepdims=True)
    assert found.recall_lost == pytest.approx(recall(known().states.rows) - recall(unit))


def test_a_file_that_departs_is_blamed_before_any_device():
    gaps = (0.2,) * 24
    fault = d.diagnose(known(), None, recall, file=d.FileCheck("fp32", gaps, 0.0)).faults[0]
    assert fault.stage == "conversion"
    sound, broken = (d.FileCheck("int8", gaps, 0.001, sibling=s) for s in (1e-9, 0.2))
    assert (sound.stage, broken.stage) == ("quantisation", "conversion")
    fine = d.FileCheck("int8", (0.0015,) * 24, 0.001, sibling=1e-9)
    assert not fine.departs
    assert d.diagnose(known(), None, recall, precision="int8", file=fine).verdict == "healthy"


def test_what_eight_bits_cost_is_more_than_nothing_and_less_than_a_fault():
    from hetero.diagnose._expected import int8_gap

    gap = int8_gap(known().engine.net, SPEC.tensor(probe().pixels))
    assert 1e-6 < gap < 0.02


# -- hypotheses of one's own, and traces --------------------------------------------------------


def test_a_hypothesis_of_ones_own_is_tried_too(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("")
    (tmp_path / "own" / "odd.py").write_text(
        "STAGE, FIX = 'resize', 'do not roll'\n"
        "import numpy as np\n"
        "def variants(spec):\n"
        "    yield 'rolled by two', lambda rgb, s: np.roll(s.pixels(rgb), 2, axis=0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = device(resize=lambda rgb, s: np.roll(s.pixels(rgb), 2, axis=0)).rows
    assert solved(rows).stage != "resize" or not solved(rows).faults[0].exact
    library = d.library(known().pictures, SPEC, known().engine, ("own.odd",))
    found = d.diagnose(library, trace(rows), recall)
    assert (found.stage, found.faults[0].cause) == ("resize", "rolled by two")
    (tmp_path / "own" / "bad.py").write_text("STAGE = 'nonsense'\n")
    with pytest.raises(ConfigError, match="'nonsense'; it has to be one of decode"):
        d.library(known().pictures, SPEC, known().engine, ("own.bad",))


def test_a_trace_is_read_as_an_app_engineer_writes_it(tmp_path):
    names_ = [p.name for p in known().pictures]
    (tmp_path / "names.txt").write_text("\n".join(reversed(names_)) + "\n\n")
    np.save(tmp_path / "embedding.npy", known().home[::-1].astype(np.float64))
    np.save(tmp_path / "pixels.npy", known().states.pixels[::-1])
    (tmp_path / "decoded").mkdir()
    for name, rgb in zip(names_, known().states.decoded, strict=True):
        Image.fromarray(rgb).save(tmp_path / "decoded" / f"{name}.png")
    read = d.load(tmp_path)
    ordered = read.ordered(tuple(names_))
    assert np.array_equal(ordered.embedding, known().home)
    assert np.array_equal(ordered.pixels, known().states.pixels)
    assert len(ordered.decoded) == len(names_)
    assert d.diagnose(known(), read, recall).verdict == "healthy"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "names.txt").unlink(), "no names.txt; list the pictures"),
        (lambda p: (p / "embedding.npy").unlink(), "embedding.npy: missing; write the app's"),
        (lambda p: (p / "embedding.npy").write_bytes(b"no"), "not a NumPy array file"),
        (lambda p: np.save(p / "embedding.npy", np.zeros(3)), "2 dimensions, got float64"),
        (lambda p: np.save(p / "embedding.npy", np.zeros((3, 4))), "3 rows for 2 names"),
        (lambda p: np.save(p / "pixels.npy", np.zeros((2, 4, 4, 3))), "expected uint8, got float"),
        (lambda p: (p / "names.txt").write_text("a\na\n"), "named twice"),
    ],
)
def test_a_trace_that_is_not_whole_is_refused_in_one_line(tmp_path, spoil, message):
    (tmp_path / "names.txt").write_text("a\nb\n")
    np.save(tmp_path / "embedding.npy", np.zeros((2, 4), "f4"))
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        d.load(tmp_path)


def test_a_trace_without_all_canaries_is_refused():
    some = d.Trace(("plain-00.png",), np.zeros((1, 16), "f4"))
    with pytest.raises(DataError, match=r"115 of 116 canary pictures have no row"):
        d.diagnose(known(), some, recall)


def test_only_a_near_cause_far_ahead_of_every_other_stage_is_named():
    def tried(stage: str, explained: float) -> _search.Tried:
        variant = next(v for v in variants(SPEC) if v.stage == stage)
        return _search.Tried(variant, explained, False, np.zeros(3))

    near = [tried("crop", 0.9), tried("resize", 0.3)]
    assert _search.named(near, ())[0].variant.stage == "crop"
    assert _search.named([tried("crop", 0.9), tried("resize", 0.85)], ()) is None
    assert _search.named([tried("crop", 0.6), tried("resize", 0.1)], ()) is None
    assert _search.named([], ("crop",)) is None


def test_the_l2_step_is_not_blamed_for_vectors_that_were_turned() -> None:
    from hetero.diagnose._diagnosis import Layer
    from hetero.diagnose._file import FileCheck, file_fault

    layer = Layer("out", "Div", "head", "l2", "div", 0.1, 0.0, "values", 1.0, 20, 20)
    turned = FileCheck("int8", (0.2,) * 8, 0.001, sibling=0.0, layer=layer)
    assert turned.departs
    assert turned.stage == "quantisation"
    assert turned.guilty is None
    assert "div" not in file_fault(turned).cause
    # Where directions are right and lengths are not, it is the one to blame.
    long = FileCheck("int8", (0.0,) * 8, 0.001, sibling=0.0, layer=layer, length=3.0)
    assert long.stage == "l2"
    assert long.guilty is layer
