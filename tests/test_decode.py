"""`decode` against files of every awkward kind, each made here, with the right answer known."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from hetero import preprocess
from hetero.errors import BundleError, ConfigError, DataError
from hetero.preprocess import Preprocess, decode

RANDOM = np.random.default_rng(5)
#: Smooth, so that lossy formats keep it, and without symmetry, so that every turn shows.
RGB = np.asarray(
    Image.fromarray(RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((48, 32), 3)
)
GREY16 = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def encoded(picture, format, **options):
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def png(width, height, depth, colour, rows, *chunks):
    """A PNG written by hand, for what Pillow reads but does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunk(*c) for c in chunks) + body
    ) + chunk(b"IEND", b"")


def over_white(rgb, alpha):
    share = np.asarray(alpha, dtype=np.float64)[..., None] / 255
    return rgb * share + 255 * (1 - share)


def assert_near(got, wanted, by):
    assert got.dtype == np.uint8
    assert got.shape == wanted.shape
    assert np.abs(got.astype(float) - wanted).max() <= by


# -- kinds of pixels ------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF"])
def test_a_plain_picture_comes_back_as_it_was(format):
    np.testing.assert_array_equal(decode(encoded(RGB, format)), RGB)


def test_a_path_and_its_bytes_give_the_same_picture(tmp_path):
    raw = encoded(RGB, "JPEG")
    (tmp_path / "no-suffix").write_bytes(raw)
    np.testing.assert_array_equal(decode(tmp_path / "no-suffix"), decode(raw))


def test_a_cmyk_jpeg_has_the_colours_its_inks_mix_to():
    cmyk = np.zeros((16, 64, 4), dtype=np.uint8)
    for patch, inks in enumerate([(0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0)]):
        cmyk[:, patch * 16 : patch * 16 + 16] = inks
    got = decode(encoded(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95))
    middles = got[8, 8::16].astype(int)
    assert np.abs(middles - [(255, 0, 0), (0, 255, 255), (0, 0, 0), (255, 255, 255)]).max() <= 6


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_so_that_white_stays_white(format):
    wanted = np.floor(GREY16.astype(np.float64) / 257 + 0.5).astype(np.uint8)
    got = decode(encoded(GREY16, format))
    for channel in range(3):
        np.testing.assert_array_equal(got[..., channel], wanted)


def test_16_bit_grey_of_a_portable_map_is_scaled_alike():
    raw = b"P5 256 256 65535\n" + GREY16.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode(raw), decode(encoded(GREY16, "PNG")))


def test_16_bit_colour_keeps_its_high_byte():
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=">u2")
    got = decode(png(2, 1, 16, 2, b"\0" + values.tobytes()))
    np.testing.assert_array_equal(got, [[[0, 0, 1], [128, 254, 255]]])


def test_16_bit_grey_with_alpha_is_laid_over_white():
    values = np.array([[65535, 65535], [0, 65535], [0, 0]], dtype=">u2")
    got = decode(png(3, 1, 16, 4, b"\0" + values.tobytes()))
    np.testing.assert_array_equal(got[0], [[255] * 3, [0] * 3, [255] * 3])


def test_one_bit_is_black_and_white():
    bits = RANDOM.integers(0, 2, (9, 13)).astype(bool)
    got = decode(encoded(Image.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(got, np.repeat(bits[..., None] * 255, 3, axis=2))


def test_eight_bit_grey_has_three_equal_channels():
    got = decode(encoded(RGB[..., 0], "PNG"))
    np.testing.assert_array_equal(got, np.repeat(RGB[..., :1], 3, axis=2))


def test_transparency_is_laid_over_white():
    alpha = RANDOM.integers(0, 256, RGB.shape[:2], dtype=np.uint8)
    rgba = np.dstack([RGB, alpha])
    assert_near(decode(encoded(rgba, "PNG")), over_white(RGB, alpha), by=1)
    grey = np.repeat(RGB[..., :1], 3, axis=2)
    la = Image.fromarray(np.dstack([RGB[..., 0], alpha]), "LA")
    assert_near(decode(encoded(la, "PNG")), over_white(grey, alpha), by=1)


def test_a_palette_with_one_transparent_colour_shows_white_there():
    indices = RANDOM.integers(0, 4, (10, 12), dtype=np.uint8)
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(palette.tobytes())
    wanted = palette[indices].copy()
    np.testing.assert_array_equal(decode(encoded(picture, "PNG")), wanted)
    wanted[indices == 2] = 255
    for format in ("PNG", "GIF"):
        got = decode(encoded(picture, format, transparency=2))
        np.testing.assert_array_equal(got, wanted)


def test_a_palette_with_an_alpha_for_each_colour_is_laid_over_white():
    indices = RANDOM.integers(0, 3, (10, 12), dtype=np.uint8)
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0]], dtype=np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(palette.tobytes())
    alpha = np.array([255, 128, 0], dtype=np.uint8)
    got = decode(encoded(picture, "PNG", transparency=alpha.tobytes()))
    assert_near(got, over_white(palette[indices], alpha[indices]), by=1)


def test_a_colour_named_transparent_is_white_without_an_alpha_channel():
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    got = decode(encoded(rgb, "PNG", transparency=(4, 5, 6)))
    np.testing.assert_array_equal(got, [[[1, 2, 3], [255, 255, 255]]])


def test_colour_profiles_are_not_applied():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(decode(encoded(RGB, "PNG", icc_profile=profile)), RGB)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(format):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    raw = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode(raw), np.full((10, 20, 3), [255, 0, 0]))


# -- orientation ----------------------------------------------------------------------------------

#: What a camera stores for an upright picture, by the value of the EXIF tag.
STORED = {
    1: lambda up: up,
    2: lambda up: up[:, ::-1],
    3: lambda up: up[::-1, ::-1],
    4: lambda up: up[::-1],
    5: lambda up: up.transpose(1, 0, 2),
    6: lambda up: np.rot90(up),
    7: lambda up: up[::-1, ::-1].transpose(1, 0, 2),
    8: lambda up: np.rot90(up, -1),
}


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_picture_is_turned_upright_whatever_way_the_camera_was_held(value, format):
    exif = Image.Exif()
    exif[0x0112] = value
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(
        format, {}
    )
    stored = np.ascontiguousarray(STORED[value](RGB))
    got = decode(encoded(stored, format, exif=exif, **options))
    assert_near(got, RGB.astype(float), by=16 if format == "JPEG" else 0)


def test_a_16_bit_picture_is_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    got = decode(encoded(np.ascontiguousarray(np.rot90(GREY16)), "PNG", exif=exif))
    np.testing.assert_array_equal(got, decode(encoded(GREY16, "PNG")))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(value):
    exif = Image.Exif()
    exif[0x0112] = value
    np.testing.assert_array_equal(decode(encoded(RGB, "PNG", exif=exif)), RGB)


@pytest.mark.parametrize(
    "block",
    [
        "4d4d002a000000080003010700020000000600000032011200030000000100060000011a0005000000010000003"
        "8000000006d616b6572000000004800000001",
        "4d4d002a000000080003010f00020000000600000032011200030000000100060000011a0007000000010000003"
        "8000000006d616b6572000000004800000001",
    ],
)
def test_a_damaged_exif_block_does_not_cost_the_picture(block):
    raw = encoded(np.ascontiguousarray(np.rot90(RGB)), "PNG", exif=bytes.fromhex(block))
    with pytest.raises((struct.error, TypeError)):  # else this block tests nothing any more
        ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))
    np.testing.assert_array_equal(decode(raw), RGB)


@given(st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_no_exif_block_stops_a_picture_from_being_read(block):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = decode(encoded(RGB, "PNG", exif=b"Exif\0\0" + block))
    assert sorted(got.shape) == sorted(RGB.shape)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "the file is empty"),
        (b"this is a text file renamed to .jpg\n" * 20, "not a picture"),
        (b"\xff\xd8", "not a picture"),
        (b"\xff\xd8\xff\xe0", "cannot be|not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is a drawing"),
        (png(100_000, 100_000, 8, 2, b""), "too many pixels"),
        (png(12_000, 12_000, 8, 2, b"\0"), "cannot be decoded"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_picture_is_refused_in_one_line(raw, why):
    with pytest.raises(DataError, match=f"^{len(raw)} bytes: .*({why})") as caught:
        decode(raw)
    assert "\n" not in str(caught.value)


def test_a_picture_above_the_limit_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(preprocess, "MAX_PIXELS", RGB.shape[0] * RGB.shape[1] - 1)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("unpacked"))
    with pytest.raises(DataError, match="48x32 pixels is more than 1535"):
        decode(encoded(RGB, "PNG"))


@pytest.mark.filterwarnings("error")
def test_a_large_picture_is_refused_where_warnings_are_errors(monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    raw = encoded(RGB, "PNG")
    with pytest.raises(DataError, match="too many pixels"):
        decode(raw)


def test_floating_point_and_more_than_16_bits_are_refused():
    with pytest.raises(DataError, match="floating-point"):
        decode(encoded(RGB[..., 0].astype(np.float32) / 255, "TIFF"))
    with pytest.raises(DataError, match="beyond 16 bits"):
        decode(encoded(np.full((4, 4), 65536, dtype=np.int32), "TIFF"))
    with pytest.raises(DataError, match="beyond 16 bits"):
        decode(encoded(np.full((4, 4), -1, dtype=np.int32), "TIFF"))
    np.testing.assert_array_equal(decode(encoded(np.full((4, 4), 65535, np.int32), "TIFF")), 255)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    for path in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(DataError, match=f"^{path}: cannot be read"):
            decode(path)


KINDS = {
    "jpeg": encoded(RGB, "JPEG"),
    "progressive": encoded(RGB, "JPEG", progressive=True),
    "cmyk": encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "png": encoded(RGB, "PNG"),
    "png16": encoded(GREY16[:30, :30].copy(), "PNG"),
    "palette": encoded(Image.fromarray(RGB).quantize(), "PNG", transparency=3),
    "gif": encoded(Image.fromarray(RGB).quantize(), "GIF"),
    "webp": encoded(RGB, "WEBP"),
    "bmp": encoded(RGB, "BMP"),
    "tiff": encoded(RGB, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_refused_and_never_half_a_picture(kind, share):
    raw = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = decode(raw)
        try:
            got = decode(raw[: int(len(raw) * share)])
        except DataError:
            return
    assert kind in ("png", "png16", "palette", "gif")  # these end in bytes that hold no pixels
    np.testing.assert_array_equal(got, whole)


@pytest.mark.parametrize("lost", [1, 2, 3, 10, 100])
def test_a_jpeg_that_lost_its_last_bytes_is_refused(lost):
    with pytest.raises(DataError, match="truncated"):
        decode(KINDS["jpeg"][:-lost])


@given(st.sampled_from(sorted(KINDS)), st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_give_a_picture_or_one_clear_error(kind, data):
    raw = bytearray(KINDS[kind])
    # Damage near the start hits headers, the richest source of odd failures.
    place = st.one_of(st.integers(0, 60), st.integers(0, len(raw) - 1))
    for at in data.draw(st.lists(place, min_size=1, max_size=5)):
        raw[at] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            got = decode(bytes(raw))
        except DataError:
            return
    assert got.dtype == np.uint8
    assert got.ndim == 3
    assert got.shape[2] == 3


def test_threads_decode_alike_and_leave_the_warning_filters_alone():
    before = list(warnings.filters)
    raws = list(KINDS.values()) * 10
    alone = [decode(raw) for raw in raws]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode, raws))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert warnings.filters == before


# -- the spec -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"size_px": 7},
        {"size_px": 5000},
        {"size_px": 32.0},
        {"mean": (0.5, 0.5)},
        {"mean": (0.5, float("nan"), 0.5)},
        {"std": (0.5, 0.0, 0.5)},
        {"std": (0.5, float("inf"), 0.5)},
        {"resize": "nearest"},
        {"fit": "pad"},
    ],
)
def test_a_spec_that_cannot_be_is_refused(change):
    with pytest.raises(ConfigError, match="preprocess: "):
        Preprocess(**change)
    with pytest.raises(BundleError, match="not a preprocess spec: "):
        Preprocess.from_json({**Preprocess().to_json(), **change})


def test_a_spec_survives_the_way_through_json():
    spec = Preprocess(size_px=64, resize="lanczos", fit="squash", mean=(0.1, 0.2, 0.3))
    assert Preprocess.from_json(spec.to_json()) == spec
    with pytest.raises(BundleError, match="unexpected"):
        Preprocess.from_json({**spec.to_json(), "gamma": 2.2})
