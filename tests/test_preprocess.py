"""What stands in front of a model; decoding files is in test_decode.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hetero.preprocess import Preprocess

SPECS = st.builds(
    Preprocess,
    size_px=st.integers(8, 64),
    resize=st.sampled_from(["bilinear", "bicubic", "box", "lanczos"]),
    fit=st.sampled_from(["squash", "centre"]),
    mean=st.tuples(*[st.floats(-1, 2)] * 3),
    std=st.tuples(*[st.floats(0.01, 2)] * 3),
)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(SPECS)
def test_the_tensor_is_what_a_slow_loop_gives(spec):
    pixels = np.stack([picture(8, 8, seed) for seed in range(2)])
    slow = np.empty((2, 3, 8, 8))
    for n in range(2):
        for c in range(3):
            for y in range(8):
                for x in range(8):
                    slow[n, c, y, x] = (int(pixels[n, y, x, c]) / 255 - spec.mean[c]) / spec.std[c]
    got = spec.tensor(pixels)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, slow, rtol=1e-5, atol=1e-4)


def test_black_and_white_land_where_mean_and_std_say():
    spec = Preprocess(size_px=8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    pixels = np.stack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)])
    got = spec.tensor(pixels)
    assert got[0, :, 0, 0].tolist() == [-1, -1, 0]
    assert got[1, :, 0, 0].tolist() == [1, 3, 0.5]


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "box", "lanczos"])
@pytest.mark.parametrize("shape", [(8, 8), (31, 31), (40, 25), (9, 100), (1, 1)])
def test_squashing_is_pillow_s_resize_of_the_whole_picture(resize, shape):
    rgb = picture(*shape)
    kernel = Image.Resampling[resize.upper()]
    expected = np.asarray(Image.fromarray(rgb).resize((8, 8), kernel))
    got = Preprocess(size_px=8, resize=resize, fit="squash").pixels(rgb)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("shape", [(16, 16), (40, 25), (25, 40), (9, 100), (101, 10)])
def test_centring_is_cropping_the_middle_square_and_then_resizing(shape):
    rgb = picture(*shape)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    square = rgb[top : top + side, left : left + side]
    expected = np.asarray(Image.fromarray(square).resize((8, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(Preprocess(size_px=8, fit="centre").pixels(rgb), expected)


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "box", "lanczos"])
def test_what_centring_cuts_off_has_no_say(resize):
    rgb = picture(20, 50)
    other = rgb.copy()
    other[:, :15], other[:, 35:] = 0, 255
    spec = Preprocess(size_px=8, resize=resize, fit="centre")
    assert np.array_equal(spec.pixels(rgb), spec.pixels(other))


def test_a_box_filter_that_halves_averages_fours():
    rgb = picture(16, 16)
    means = rgb.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    got = Preprocess(size_px=8, resize="box").pixels(rgb).astype(float)
    assert np.abs(got - means).max() <= 1  # rounded twice, once in each direction


def test_a_picture_of_the_right_size_stays_as_it_is_but_is_not_shared():
    rgb = picture(8, 8)
    got = Preprocess(size_px=8).pixels(rgb)
    assert np.array_equal(got, rgb)
    assert not np.shares_memory(got, rgb)


@given(SPECS)
def test_a_spec_survives_the_way_through_json_and_keeps_its_hash(spec):
    back = Preprocess.from_json(json.loads(json.dumps(spec.to_json())))
    assert back == spec
    assert back.sha256 == spec.sha256


@given(SPECS, SPECS)
def test_specs_have_one_hash_if_and_only_if_they_are_equal(one, other):
    assert (one.sha256 == other.sha256) == (one == other)


def test_the_hash_of_the_default_spec_never_changes():
    # It is part of the identity of every space in use.
    assert Preprocess().sha256 == (
        "fdebdd2e849f11a88b0cea879afcdeade9ff6475655d4837fae96c2ee5d7d4a2"
    )
