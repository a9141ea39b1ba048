"""Maps: fitted to pairs of vectors, each held to the same contract and to a slow formula."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="maps need the extra 'train'")

from torch import nn  # noqa: E402

from hetero import maps  # noqa: E402
from hetero.errors import ConfigError, DataError  # noqa: E402
from hetero.maps.procrustes import turn  # noqa: E402

MAPS = maps.names()
DIMS = [(8, 8), (8, 16), (16, 8)]
#: Enough for any map to learn from, and no more than a test needs.
QUICK = {"residual_mlp": {"hidden": 32, "epochs": 8, "batch": 64}}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pairs(query_dim: int, gallery_dim: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of two models that see the same things, each along axes of its own, with noise."""
    rng = np.random.default_rng([query_dim, gallery_dim])
    seen = rng.normal(size=(n, 6))
    rows = []
    for dim in (query_dim, gallery_dim):
        axes = np.linalg.qr(rng.normal(size=(dim, 6)))[0]
        rows.append(unit(seen @ axes.T + 0.1 * rng.normal(size=(n, dim))))
    return rows[0], rows[1]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum(1).mean())


def a_map(name: str) -> maps.Map:
    return maps.make(name, QUICK.get(name))


def test_every_file_of_the_folder_is_a_map() -> None:
    assert set(MAPS) == {"affine", "procrustes", "residual_mlp", "whiten"}
    assert all(isinstance(maps.make(name), maps.Map) for name in MAPS)


# -- what all maps owe ----------------------------------------------------------------------------


@pytest.mark.parametrize(("query_dim", "gallery_dim"), DIMS)
@pytest.mark.parametrize("name", MAPS)
def test_pairs_held_out_agree_after_the_map(name: str, query_dim: int, gallery_dim: int) -> None:
    source, target = pairs(query_dim, gallery_dim)
    net = maps.fit(a_map(name), source[:300], target[:300])
    out = maps.apply(net, source[300:])
    assert out.shape == (100, gallery_dim)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    assert cosine(out, target[300:]) > 0.9
    # Against pictures that are not theirs they do not.
    assert cosine(out, np.roll(target[300:], 1, axis=0)) < 0.3


@pytest.mark.parametrize("name", MAPS)
def test_equal_pairs_and_seed_give_equal_numbers_and_leave_the_random_state(name: str) -> None:
    source, target = pairs(8, 16)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = (maps.fit(a_map(name), source, target, seed=5) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("query_dim", "gallery_dim"), DIMS)
@pytest.mark.parametrize("name", MAPS)
def test_a_fitted_map_loads_into_a_fresh_net(name: str, query_dim: int, gallery_dim: int) -> None:
    source, target = pairs(query_dim, gallery_dim)
    fitted = maps.fit(a_map(name), source, target)
    again = maps.make(name, maps.settings_of(a_map(name))).net(query_dim, gallery_dim)
    again.load_state_dict(fitted.state_dict())
    np.testing.assert_array_equal(maps.apply(again, source), maps.apply(fitted, source))


@pytest.mark.parametrize("name", MAPS)
def test_too_few_pairs_are_refused(name: str) -> None:
    source, target = pairs(8, 16)
    with pytest.raises(DataError, match=r"7 pairs .* with 8 numbers"):
        maps.fit(a_map(name), source[:7], target[:7])
    maps.fit(a_map(name), source[:8], target[:8])


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("side", ["query", "gallery"])
def test_a_row_that_is_not_finite_is_named_and_refused(name: str, side: str) -> None:
    source, target = pairs(8, 8)
    (source if side == "query" else target)[17, 2] = np.nan
    with pytest.raises(DataError, match=rf"1 of 400 {side} vectors .* row 17"):
        maps.fit(a_map(name), source, target)


# -- procrustes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("query_dim", "gallery_dim"), DIMS)
def test_procrustes_finds_the_turn_that_was_made(query_dim: int, gallery_dim: int) -> None:
    rng = np.random.default_rng(0)
    wide, narrow = max(query_dim, gallery_dim), min(query_dim, gallery_dim)
    axes = np.linalg.qr(rng.normal(size=(wide, narrow)))[0]  # orthonormal columns
    hidden = unit(rng.normal(size=(200, narrow)))
    source, target = (
        (hidden, hidden @ axes.T) if query_dim <= gallery_dim else (hidden @ axes.T, hidden)
    )
    made = axes if query_dim <= gallery_dim else axes.T
    found = turn(source.astype(np.float32), target.astype(np.float32))
    np.testing.assert_allclose(found, made, atol=1e-6)


@pytest.mark.parametrize(("query_dim", "gallery_dim"), DIMS)
def test_procrustes_is_the_polar_factor_of_the_cross_product(
    query_dim: int, gallery_dim: int
) -> None:
    # The oracle: with U·S·V' the SVD of target'·source, W = U·V'; and no other such W does better.
    source, target = pairs(query_dim, gallery_dim)
    u, _, v = np.linalg.svd(target.T.astype(np.float64) @ source, full_matrices=False)
    found = turn(source, target)
    np.testing.assert_allclose(found, u @ v, atol=1e-8)
    narrow = min(query_dim, gallery_dim)
    gram = found @ found.T if query_dim > gallery_dim else found.T @ found
    np.testing.assert_allclose(gram, np.eye(narrow), atol=1e-10)
    rng = np.random.default_rng(1)
    best = ((source @ found.T) * target).sum()
    for _ in range(20):
        q = np.linalg.qr(rng.normal(size=(max(query_dim, gallery_dim), narrow)))[0]
        other = q if query_dim <= gallery_dim else q.T
        assert ((source @ other.T) * target).sum() < best


def test_into_more_dimensions_procrustes_keeps_all_distances() -> None:
    source, target = pairs(8, 16)
    out = maps.apply(maps.fit(maps.make("procrustes"), source, target), source)
    np.testing.assert_allclose(out @ out.T, source @ source.T, atol=1e-5)


# -- affine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [True, False])
def test_affine_is_ridge_regression(offset: bool) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    source, target = pairs(8, 16)
    target = unit(target + 0.3)  # so that an offset has something to do
    net = maps.fit(maps.make("affine", {"ridge": 0.01, "offset": offset}), source, target)
    # Ours is per pair, scikit-learn's of the sum.
    wanted = linear.Ridge(0.01 * len(source), fit_intercept=offset).fit(
        source.astype(np.float64), target.astype(np.float64)
    )
    np.testing.assert_allclose(net.weight.detach().numpy(), wanted.coef_, atol=1e-5)
    if offset:
        np.testing.assert_allclose(net.bias.detach().numpy(), wanted.intercept_, atol=1e-5)
    else:
        assert net.bias is None


def test_a_low_rank_is_the_best_of_its_rank() -> None:
    # Without ridge, and with pairs that are white, the best matrix of a rank is the cut SVD.
    rng = np.random.default_rng(0)
    source = np.linalg.qr(rng.normal(size=(300, 8)))[0]
    target = source @ rng.normal(size=(8, 10)) + 0.01 * rng.normal(size=(300, 10))
    chosen = maps.make("affine", {"rank": 3, "ridge": 0.0, "offset": False})
    net = maps.fit(chosen, source.astype(np.float32), target.astype(np.float32))
    u, s, v = np.linalg.svd(source.T @ target, full_matrices=False)
    wanted = (u[:, :3] * s[:3]) @ v[:3]
    found = maps.matrix(net)
    assert found is not None
    np.testing.assert_allclose(found.numpy().T, wanted, atol=1e-4)
    assert sum(p.numel() for p in net.parameters()) == 3 * (8 + 10)


@pytest.mark.parametrize("offset", [True, False])
def test_a_rank_as_large_as_the_space_is_full_rank(offset: bool) -> None:
    source, target = pairs(8, 16)
    full, cut = (
        maps.fit(maps.make("affine", {"rank": rank, "offset": offset}), source, target)
        for rank in (0, 8)
    )
    np.testing.assert_array_equal(maps.apply(full, source), maps.apply(cut, source))


def test_a_low_rank_with_offset_goes_through_the_means() -> None:
    # Least squares with an offset maps the mean to the mean, whatever the rank.
    source, target = pairs(8, 16)
    target = unit(target + 0.3)
    net = maps.fit(maps.make("affine", {"rank": 2, "ridge": 0.1}), source, target)
    with torch.no_grad():
        middle = net(torch.from_numpy(source.mean(0, keepdims=True))).numpy()
    np.testing.assert_allclose(middle[0], target.mean(0), atol=1e-5)


# -- residual_mlp ---------------------------------------------------------------------------------


def test_a_bent_space_is_what_the_network_is_for() -> None:
    rng = np.random.default_rng(0)
    source = unit(rng.normal(size=(600, 8)))
    target = unit(np.abs(source) + 0.2 * source)
    straight, bent = (
        cosine(maps.apply(maps.fit(maps.make(*m), source[:500], target[:500]), source[500:]), right)
        for right in [target[500:]]
        for m in [("procrustes",), ("residual_mlp", {"hidden": 64, "lr": 0.01})]
    )
    assert bent > straight + 0.1


def test_where_training_can_only_do_harm_the_procrustes_map_is_kept() -> None:
    source, target = pairs(8, 8)
    ruined = maps.make("residual_mlp", {"lr": 1e3, "epochs": 2, "hidden": 4})
    net = maps.fit(ruined, source, target)
    assert maps.matrix(net.turn) is not None
    with torch.no_grad():
        assert not net.bend(torch.from_numpy(source)).any()
    assert cosine(maps.apply(net, source), target) > 0.9


def test_the_seed_changes_what_is_drawn() -> None:
    source, target = pairs(8, 8)
    one, two = (maps.fit(a_map("residual_mlp"), source, target, seed) for seed in (0, 1))
    assert not torch.equal(one.turn.weight, two.turn.weight)


# -- what folds -----------------------------------------------------------------------------------


def test_a_chain_of_linear_layers_without_offset_is_a_matrix_and_nothing_else_is() -> None:
    chain = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False))
    found = maps.matrix(chain)
    assert found is not None
    rows = torch.randn(5, 4)
    torch.testing.assert_close(rows.double() @ found.T, chain(rows).double())
    for other in (
        nn.Linear(4, 3),
        nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU()),
        nn.Identity(),
        maps.make("residual_mlp").net(4, 3),
    ):
        assert maps.matrix(other) is None


# -- settings and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("procrust", {}, "unknown map 'procrust'; there are affine, procrustes, residual_mlp"),
        ("procrustes", {"rank": "3"}, "no setting 'rank'; there are none"),
        ("affine", {"rank": "many"}, "rank needs a int, got 'many'"),
        ("affine", {"rank": "-1"}, "at least 0, got -1"),
        ("affine", {"ridge": "nan"}, "at least 0, got 0 and nan"),
        ("affine", {"offset": "perhaps"}, "offset needs a bool, got 'perhaps'"),
        ("residual_mlp", {"epochs": "0"}, "at least 1"),
        ("residual_mlp", {"held_out": "1"}, "between 0 and 1"),
        ("hetero.errors", {}, "has no dataclass Map"),
    ],
)
def test_what_cannot_be_is_one_line(name: str, settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        maps.make(name, settings)


def test_settings_from_text_and_back() -> None:
    made = maps.make("affine", {"rank": "3", "ridge": "0.5", "offset": "no"})
    assert maps.settings_of(made) == {"rank": 3, "ridge": 0.5, "offset": False}
    assert maps.make("affine", maps.settings_of(made)) == made


def own_map(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    """The dotted path of a module of a user's own with this class Map."""
    (folder / "mine").mkdir()
    (folder / "mine" / "map.py").write_text(
        "from dataclasses import dataclass\nfrom torch import nn\n\n"
        f"@dataclass(frozen=True)\nclass Map:\n{body}"
    )
    monkeypatch.syspath_prepend(folder)
    for name in ("mine", "mine.map"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "mine.map"


def test_a_map_of_a_users_own_is_found_by_its_dotted_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "    def net(self, query_dim, gallery_dim):\n        return nn.Identity()\n"
        "    def fit(self, source, target, seed):\n        return nn.Identity()\n"
    )
    made = maps.make(own_map(tmp_path, monkeypatch, body))
    source, _ = pairs(8, 8)
    out = maps.apply(maps.fit(made, source, source), source)
    np.testing.assert_allclose(out, source, atol=1e-6)


def test_a_setting_without_a_default_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = own_map(tmp_path, monkeypatch, "    taste: int\n")
    with pytest.raises(ConfigError, match="the setting taste has no default"):
        maps.make(name)


# -- whiten ---------------------------------------------------------------------------------------


def test_whitening_the_query_side_twice_scores_as_whitening_both_sides() -> None:
    target = pairs(8, 8)[1]
    net = maps.fit(maps.make("whiten", {"power": 1.0, "floor": 1e-9, "ridge": 0.0}), target, target)
    # Both sides by the textbook: after it the covariance is the identity.
    white = np.linalg.inv(np.linalg.cholesky(np.cov(target.T.astype(float))))
    both = target @ white.T
    np.testing.assert_allclose(np.cov(both.T), np.eye(8), atol=1e-4)
    one = target @ net.weight.detach().double().numpy().T
    mine, theirs = one @ target.T, both @ both.T
    np.testing.assert_allclose(
        mine / np.linalg.norm(mine), theirs / np.linalg.norm(theirs), atol=1e-6
    )


def test_whitening_by_power_zero_is_the_regression() -> None:
    source, target = pairs(8, 16)
    plain = maps.fit(maps.make("affine", {"offset": False}), source, target)
    none = maps.fit(maps.make("whiten", {"power": 0.0}), source, target)
    torch.testing.assert_close(plain.weight, none.weight, rtol=1e-5, atol=1e-6)


def test_whitening_lowers_what_all_pictures_share_and_finds_more() -> None:
    rng = np.random.default_rng(0)
    # Two directions that every picture varies in by chance, and fourteen that tell classes apart.
    centres = np.concatenate([np.zeros((60, 2)), rng.normal(size=(60, 14))], 1)
    loud = np.array([3.0] * 2 + [0] * 14)

    def shot() -> np.ndarray:
        return unit(centres + loud * rng.normal(size=(60, 16)) + 0.2 * rng.normal(size=(60, 16)))

    seen = np.concatenate([shot() for _ in range(8)])
    net = maps.fit(maps.make("whiten"), seen, seen)
    query, gallery = shot(), shot()

    def found(rows: np.ndarray) -> float:
        return float(((rows @ gallery.T).argmax(1) == np.arange(60)).mean())

    assert found(maps.apply(net, query)) > found(query) + 0.1


@pytest.mark.parametrize(
    "settings", [{"power": 1.5}, {"power": -0.1}, {"floor": 0.0}, {"ridge": -1.0}]
)
def test_whitening_out_of_range_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"power must be in 0\.\.1"):
        maps.make("whiten", settings)
