from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from hetero.augment import WIDTH, Augment, View, gather, identity
from hetero.errors import ConfigError
from hetero.preprocess import Preprocess

OFF = Augment(0, 0, 0, 0, 0, 0, 0, 0, 0)
PREPROCESS = Preprocess(16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
PLAIN = Preprocess(16, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))  # keeps bytes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 8, size: int = 16, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def view(augment: Augment, pixels: Tensor, seed: int = 0, preprocess: Preprocess = PLAIN) -> Tensor:
    return View(preprocess)(pixels, augment.draw(len(pixels), generator(seed)))


def nchw(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float()


# -- drawing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_each_picture_gets_one_row_of_numbers(count: int) -> None:
    drawn = Augment().draw(count, generator())
    assert drawn.shape == (count, WIDTH)
    assert drawn.dtype == torch.float32


def test_one_seed_draws_the_same_numbers_and_another_draws_others() -> None:
    augment = Augment(flip=0.5)
    assert torch.equal(augment.draw(50, generator(1)), augment.draw(50, generator(1)))
    assert not torch.equal(augment.draw(50, generator(1)), augment.draw(50, generator(2)))


def test_rows_differ_from_picture_to_picture() -> None:
    assert len(torch.unique(Augment().draw(500, generator()), dim=0)) == 500


def test_all_settings_take_as_many_numbers_from_the_generator() -> None:
    # So that switching one part off leaves the others as they were.
    one, other = generator(), generator()
    Augment(flip=1.0).draw(9, one)
    OFF.draw(9, other)
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))


@settings(deadline=None, max_examples=60)
@given(
    scale=st.floats(0, 1),
    rotate=st.floats(0, 180),
    stretch=st.floats(0, 1),
    shift=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_no_view_goes_further_than_its_limits(
    scale: float, rotate: float, stretch: float, shift: float, seed: int
) -> None:
    augment = replace(OFF, scale=scale, rotate_deg=rotate, stretch=stretch, shift=shift)
    drawn = augment.draw(200, generator(seed)).double()
    affine = drawn[:, :4].reshape(-1, 2, 2)
    zoom = torch.linalg.det(affine).sqrt()
    assert (zoom.log().abs() <= scale + 1e-5).all()
    sides = affine.norm(dim=1)
    assert ((sides[:, 0] / zoom).log().abs() <= stretch + 1e-5).all()
    assert ((sides[:, 1] / zoom).log().abs() <= stretch + 1e-5).all()
    turn = torch.atan2(affine[:, 1, 0], affine[:, 0, 0]).abs()
    assert (turn <= math.radians(rotate) + 1e-5).all()
    # The grid goes from -1 to 1: two units are one side.
    assert (drawn[:, 4:6].abs() <= 2 * shift + 1e-6).all()


def test_views_use_the_whole_of_their_limits() -> None:
    augment = replace(OFF, scale=0.3, rotate_deg=20, shift=0.2)
    drawn = augment.draw(2000, generator())
    zoom = torch.linalg.det(drawn[:, :4].reshape(-1, 2, 2)).sqrt().log()
    assert zoom.min() < -0.28
    assert zoom.max() > 0.28
    turn = torch.atan2(drawn[:, 2], drawn[:, 0])
    assert turn.min() < -math.radians(19)
    assert turn.max() > math.radians(19)
    assert drawn[:, 4:6].min() < -0.38
    assert drawn[:, 4:6].max() > 0.38


@pytest.mark.parametrize("part", ["flip", "grey", "erase", "mix"])
def test_a_probability_is_the_share_of_pictures_it_happens_to(part: str) -> None:
    drawn = replace(OFF, **{part: 0.3}).draw(4000, generator())
    happened = {
        "flip": drawn[:, 0] < 0,
        "grey": (drawn[:, 6:15].reshape(-1, 3, 3) - 1 / 3).abs().amax((1, 2)) < 1e-6,
        "erase": drawn[:, 18] > 0,
        "mix": drawn[:, 22] > 0,
    }[part]
    assert float(happened.float().mean()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("name", [f.name for f in fields(Augment)])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_strength_below_zero_or_not_finite_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match="augment: nothing below 0"):
        replace(OFF, **{name: value})


@pytest.mark.parametrize("name", ["flip", "colour", "grey", "erase", "mix"])
def test_a_probability_above_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="up to 1"):
        replace(OFF, **{name: 1.01})


# -- blending -----------------------------------------------------------------------------------


def test_a_blend_is_the_weighted_mean_of_two_pictures() -> None:
    pixels, rows = pictures(6).numpy(), torch.tensor([4, 0, 2])
    views = identity(3)
    views[:, 21], views[:, 22] = torch.tensor([1.0, 5.0, 3.0]), torch.tensor([0.25, 0.5, 0.0])
    found = gather(pixels, rows, views).numpy().astype(float)
    assert np.abs(found[0] - (0.75 * pixels[4] + 0.25 * pixels[1])).max() <= 0.5 + 1e-4
    assert np.abs(found[1] - (0.5 * pixels[0] + 0.5 * pixels[5])).max() <= 0.5 + 1e-4
    assert np.array_equal(found[2], pixels[2])


def test_partners_are_of_the_collection_and_give_up_to_half() -> None:
    drawn = replace(OFF, mix=1.0).draw(2000, generator())
    assert drawn[:, 21].min() >= 0
    assert drawn[:, 21].max() < 2000
    assert (drawn[:, 21] == drawn[:, 21].round()).all()
    assert drawn[:, 22].max() <= 0.5
    assert drawn[:, 22].max() > 0.49


def test_without_blending_the_pictures_are_taken_as_they_are() -> None:
    pixels, rows = pictures(6), torch.tensor([5, 1])
    views = Augment().draw(2, generator())
    assert torch.equal(gather(pixels.numpy(), rows, views), pixels[rows])


# -- applying -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16, 33])
def test_the_identity_view_is_the_normalised_picture(size: int) -> None:
    pixels, preprocess = pictures(5, size), replace(PREPROCESS, size_px=size)
    seen = View(preprocess)(pixels, identity(5))
    torch.testing.assert_close(
        seen, torch.from_numpy(preprocess.tensor(pixels.numpy())), rtol=1e-4, atol=1e-4
    )


def test_nothing_switched_on_changes_nothing_whatever_the_seed() -> None:
    pixels = pictures()
    for seed in range(5):
        torch.testing.assert_close(view(OFF, pixels, seed), nchw(pixels), rtol=0, atol=0.01)


def test_the_same_numbers_give_the_same_view_to_the_bit_and_others_another() -> None:
    pixels, augment = pictures(), Augment(flip=0.5)
    assert torch.equal(view(augment, pixels, 3), view(augment, pixels, 3))
    assert not torch.equal(view(augment, pixels, 3), view(augment, pixels, 4))


def test_a_view_does_not_depend_on_the_rest_of_the_batch() -> None:
    # The gallery model embeds stored views in other batches than training makes.
    pixels, table = pictures(9), Augment(flip=0.5, erase=1.0).draw(9, generator())
    whole = View(PREPROCESS)(pixels, table)
    single = torch.cat([View(PREPROCESS)(pixels[i : i + 1], table[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-5)


def test_a_certain_flip_mirrors_left_and_right() -> None:
    pixels = pictures()
    seen = view(replace(OFF, flip=1.0), pixels)
    torch.testing.assert_close(seen, nchw(pixels).flip(3), rtol=0, atol=0.01)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    pixels, table = pictures(4), identity(4)
    table[:, :4] = torch.tensor([0.0, -1.0, 1.0, 0.0])
    turned = View(PLAIN)(pixels, table)
    torch.testing.assert_close(turned, torch.rot90(nchw(pixels), 1, (2, 3)), rtol=0, atol=0.02)


def test_a_shift_by_whole_pixels_moves_the_picture_and_repeats_its_border() -> None:
    pixels, table = pictures(2), identity(2)
    table[:, 4] = 2 * 3 / 16
    moved = View(PLAIN)(pixels, table)
    plain = nchw(pixels)
    torch.testing.assert_close(moved[..., :-3], plain[..., 3:], rtol=0, atol=0.01)
    border = plain[..., -1:].expand(-1, -1, -1, 3)
    torch.testing.assert_close(moved[..., -3:], border, rtol=0, atol=0.01)


def test_a_zoom_agrees_with_pillow() -> None:
    # Twice as near: what is seen is the middle half, enlarged; Pillow does the same, bilinearly.
    pixels, table = pictures(3), identity(3)
    table[:, 0], table[:, 3] = 0.5, 0.5
    seen = View(PLAIN)(pixels, table)
    for got, picture in zip(seen, pixels.numpy(), strict=True):
        affine = (0.5, 0, 4, 0, 0.5, 4)
        oracle = Image.fromarray(picture).transform(
            (16, 16), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
        )
        expected = np.asarray(oracle, np.float32).transpose(2, 0, 1)
        np.testing.assert_allclose(got.numpy(), expected, atol=1.0)


def test_a_certain_grey_removes_colour_and_keeps_brightness() -> None:
    pixels = pictures()
    seen = view(replace(OFF, grey=1.0), pixels)
    brightness = nchw(pixels).mean(1, keepdim=True)
    torch.testing.assert_close(seen, brightness.expand(-1, 3, -1, -1), rtol=1e-4, atol=0.01)


def test_colour_changes_leave_greys_without_a_tint_and_black_and_white_symmetrical() -> None:
    grey = torch.arange(0, 256, 17, dtype=torch.uint8).reshape(1, 16, 1, 1).expand(20, 16, 16, 3)
    seen = view(replace(OFF, colour=0.8), grey.contiguous())
    torch.testing.assert_close(seen[:, 0], seen[:, 1], rtol=1e-4, atol=0.01)
    torch.testing.assert_close(seen[:, 1], seen[:, 2], rtol=1e-4, atol=0.01)
    assert not torch.allclose(seen, nchw(grey), atol=5)


def test_a_turn_of_hue_by_a_third_of_the_circle_swaps_the_channels_round() -> None:
    # An independent definition of hue: turning red into green turns green into blue.
    pixels, turn = pictures(1), 2 * math.pi / 3
    table = identity(1)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    away = np.eye(3) - 1 / 3
    matrix = 1 / 3 + math.cos(turn) * away + math.sin(turn) * across
    table[0, 6:15] = torch.tensor(matrix, dtype=torch.float32).reshape(9)
    seen = View(PLAIN)(pixels, table)
    torch.testing.assert_close(seen, nchw(pixels)[:, [2, 0, 1]], rtol=1e-4, atol=0.02)


def test_colour_strength_bounds_how_far_brightness_and_contrast_go() -> None:
    white = torch.full((500, 16, 16, 3), 255, dtype=torch.uint8)
    black = torch.zeros_like(white)
    strength = 0.4
    light = view(replace(OFF, colour=strength), white)[:, 0, 0, 0] / 255
    dark = view(replace(OFF, colour=strength), black)[:, 0, 0, 0] / 255
    contrast, centre = light - dark, (light + dark) / 2
    assert (contrast - 1).abs().max() <= strength + 1e-5
    assert (centre - 0.5).abs().max() <= strength / 2 + 1e-5
    assert (contrast - 1).abs().max() > 0.9 * strength
    assert (centre - 0.5).abs().max() > 0.9 * strength / 2


@pytest.mark.parametrize("size", [16, 64])
def test_erasing_covers_a_square_of_a_quarter_to_a_half_of_the_side(size: int) -> None:
    white = torch.full((300, size, size, 3), 255, dtype=torch.uint8)
    preprocess = replace(PREPROCESS, size_px=size)
    seen = view(replace(OFF, erase=1.0), white, preprocess=preprocess)
    covered = (seen == 0).all(1)
    for mask in covered.numpy():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        high, wide = len(rows), len(columns)
        assert mask.sum() == high * wide, "one solid block"
        assert rows[-1] - rows[0] + 1 == high
        assert columns[-1] - columns[0] + 1 == wide
        assert abs(high - wide) <= 1
        assert size / 4 - 1 <= high <= size / 2 + 1
    share = float(covered.float().mean())
    # The mean of side squared, side uniform in a quarter to a half: 7/48.
    assert share == pytest.approx(7 / 48, abs=0.01)
    # Anywhere: up to each of the four borders.
    reached = covered.any(0)
    assert reached.any(0)[[0, -1]].all()
    assert reached.any(1)[[0, -1]].all()


def test_what_is_erased_has_the_mean_colour_of_the_preprocessing() -> None:
    white = torch.full((5, 16, 16, 3), 255, dtype=torch.uint8)
    seen = view(replace(OFF, erase=1.0), white, preprocess=PREPROCESS)
    colours = seen.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)
    mean, std = torch.tensor(PREPROCESS.mean), torch.tensor(PREPROCESS.std)
    bytes_seen = (colours * std + mean) * 255
    torch.testing.assert_close(bytes_seen[0], mean * 255, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(bytes_seen[1:], torch.full_like(bytes_seen[1:], 255.0))


def test_a_view_is_float_channels_last_and_without_gradient() -> None:
    seen = view(Augment(), pictures())
    assert seen.dtype == torch.float32
    assert seen.shape == (8, 3, 16, 16)
    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert not seen.requires_grad


def test_views_are_not_part_of_a_models_weights() -> None:
    assert View(PREPROCESS).state_dict() == {}


@settings(deadline=None, max_examples=25)
@given(
    strengths=st.lists(st.floats(0, 1), min_size=9, max_size=9),
    seed=st.integers(0, 2**32),
)
def test_every_view_of_every_setting_is_finite(strengths: list[float], seed: int) -> None:
    names = [f.name for f in fields(Augment)]
    augment: Any = Augment(**dict(zip(names, strengths, strict=True)))
    assert torch.isfinite(view(augment, pictures(4), seed, PREPROCESS)).all()
