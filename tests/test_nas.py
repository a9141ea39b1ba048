from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import SIZE, quiet, toy_images

from hetero import _plugins, models, nas
from hetero.errors import ConfigError
from hetero.evaluate import task
from hetero.nas.costs import latency
from hetero.nas.rewards import Rewards
from hetero.nas.space import Architecture, Choice, SearchSpace

#: Of each space one whose networks are small enough to be made by the dozen.
SPACES = {
    "elastic": "elastic:widths=0.25/0.5,strides=1/2,kernels=3/5/7,last=32",
    "shufflenet": "shufflenet:width=0.2,last=16",
}


def batch(count: int = 8, seed: int = 0, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def some(space: SearchSpace, count: int = 3) -> list[Architecture]:
    rng = np.random.default_rng(0)
    return [space.smallest(), space.largest(), *(space.draw(rng) for _ in range(count))]


# -- every space -----------------------------------------------------------------------------------


def test_every_space_is_held_to_this_contract() -> None:
    assert set(SPACES) == set(_plugins.names("hetero.nas.spaces"))


@pytest.fixture(scope="module", params=SPACES.values(), ids=SPACES.keys())
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return nas.load_space(request.param)


@pytest.fixture(scope="module")
def supernet(space: SearchSpace) -> nas.Supernet:
    torch.manual_seed(0)
    return nas.Supernet(space, 6, SIZE, batches=[batch(seed=s) for s in range(3)])


def test_every_architecture_is_an_ordinary_backbone(space: SearchSpace) -> None:
    for architecture in some(space):
        rows = models.build(space.backbone(architecture), 6, SIZE).eval()(batch(2))
        assert rows.shape == (2, 6)


def test_the_largest_architecture_costs_more_than_the_smallest(space: SearchSpace) -> None:
    small, large = (
        models.count(models.build(space.backbone(a), 6, SIZE), SIZE)
        for a in (space.smallest(), space.largest())
    )
    assert small < large


def test_what_is_not_in_a_space_is_refused(space: SearchSpace) -> None:
    for wrong in ((), (0.123, *space.smallest()[1:])):
        with pytest.raises(ConfigError, match="none of its architectures"):
            space.backbone(wrong)


def test_an_architecture_taken_out_computes_what_it_computed_inside(
    supernet: nas.Supernet,
) -> None:
    supernet.train()
    for architecture in some(supernet.space):
        alone = supernet.extract(architecture).train()
        with torch.no_grad():
            torch.testing.assert_close(alone(batch()), supernet(batch(), architecture))


def test_an_architecture_taken_out_is_the_ordinary_backbone(supernet: nas.Supernet) -> None:
    for architecture in some(supernet.space):
        ordinary = models.build(supernet.space.backbone(architecture), 6, SIZE)
        ordinary.load_state_dict(supernet.extract(architecture).state_dict())


def test_every_shared_weight_learns(supernet: nas.Supernet) -> None:
    supernet.train().zero_grad()
    for architecture in supernet.space.corners():
        supernet(batch(), architecture)[:, 0].sum().backward()
    idle = [n for n, p in supernet.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_a_step_of_the_sandwich_has_both_ends_and_two_others(supernet: nas.Supernet) -> None:
    torch.manual_seed(3)
    first, *between, last = supernet.sandwich()
    assert (first, last) == (supernet.space.smallest(), supernet.space.largest())
    assert len(between) == 2
    assert between != supernet.sandwich()[1:-1]


def test_a_single_path_step_has_one_architecture(space: SearchSpace) -> None:
    net = nas.Supernet(space, 6, SIZE, sampling="single", batches=[batch()])
    assert len(net.sandwich()) == 1


def test_uniform_sampling_draws_each_value_alike() -> None:
    found = nas.load_space(SPACES["elastic"])
    rng = np.random.default_rng(0)
    drawn = np.array([found.draw(rng) for _ in range(3000)])
    for column, choice in zip(drawn.T, found.choices, strict=True):
        shares = [float((column == v).mean()) for v in choice.values]
        # Four standard errors of a share of one half.
        assert shares == pytest.approx([1 / len(shares)] * len(shares), abs=4 * 0.5 / 3000**0.5)


# -- particular spaces ----------------------------------------------------------------------------


def test_equal_nets_have_equal_names() -> None:
    found = nas.load_space("elastic:kernels=3/5")
    names = [c.name for c in found.choices]
    short = list(found.smallest())
    other = list(short)
    # The second block of the first stage is not there at depth 1.
    other[names.index("kernel1")] = 5
    assert found.backbone(tuple(other)) == found.backbone(tuple(short))
    other[names.index("kernel0")] = 5
    assert found.backbone(tuple(other)) != found.backbone(tuple(short))


def test_a_smaller_kernel_is_the_middle_of_the_larger() -> None:
    net = nas.Supernet(nas.load_space(SPACES["elastic"]), 6, SIZE, batches=[batch()])
    names = [c.name for c in net.space.choices]
    small = list(net.space.largest())
    for name in names:
        if name.startswith("kernel"):
            small[names.index(name)] = 3
    inside = dict(net.extract(tuple(small)).named_parameters())
    whole = dict(net.extract(net.space.largest()).named_parameters())
    kernels = [n for n, p in whole.items() if p.ndim == 4 and p.shape[-1] == 7]
    assert kernels
    for name in kernels:
        assert torch.equal(inside[name], whole[name][:, :, 2:5, 2:5])


def test_the_published_space_has_twenty_blocks_of_four_operators_and_ten_widths() -> None:
    found = nas.load_space("shufflenet")
    assert [len(c.values) for c in found.choices] == [4] * 20 + [10] * 20


def test_operators_of_the_published_space_have_weights_of_their_own() -> None:
    net = nas.Supernet(nas.load_space(SPACES["shufflenet"]), 6, SIZE, batches=[batch()])
    for operator in "357x":
        assert any(f"op_{operator}/" in name for name, _ in net.named_parameters())


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("elastic:widths=half", "widths needs numbers"),
        ("elastic:odd=1", "'odd=1' is not one of its options"),
        ("shufflnet", "shufflnet.*shufflenet"),
        ("os.path", "has no space"),
    ],
)
def test_a_space_that_means_nothing_is_refused(name: str, match: str) -> None:
    def build() -> None:
        found = nas.load_space(name)
        models.build(found.backbone(found.smallest()), 6, SIZE)

    with pytest.raises(ConfigError, match=match):
        build()


def test_a_users_own_space_is_found_by_its_dotted_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "widths.py").write_text(
        "from hetero.nas import Choice, SearchSpace\n"
        "def space(options=''):\n"
        "    def spec(values):\n"
        "        return f\"mobilenet:depth=0.3,width={values['width']:g}\"\n"
        "    return SearchSpace('mine', (Choice('width', (0.25, 0.5)),), spec)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net = nas.Supernet(nas.load_space("mine.widths"), 6, SIZE, batches=[batch()])
    assert net.extract((0.25,))(batch(2)).shape == (2, 6)


def test_architectures_that_cannot_share_weights_are_refused() -> None:
    odd = SearchSpace(
        "odd",
        (Choice("width", (8.0, 4.0)),),
        lambda values: f"resnet:width={values['width']:g}",
    )
    net = nas.Supernet(odd, 6, SIZE, batches=[batch()])
    with pytest.raises(ConfigError, match="not part of the largest"):
        net.extract(odd.smallest())


def test_choices_that_cannot_be_chosen_from_are_refused() -> None:
    with pytest.raises(ConfigError, match="each once"):
        Choice("width", (1.0, 1.0))
    with pytest.raises(ConfigError, match="each name once"):
        SearchSpace("twice", (Choice("a", (1.0,)), Choice("a", (2.0,))), lambda values: "")


# -- re-calibration -------------------------------------------------------------------------------


def test_recalibration_gives_the_statistics_of_what_it_is_shown() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=0.2))
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm(batch()[:, :1].repeat(1, 4, 1, 1))
    shown = [batch(seed=s) for s in range(5)]
    nas.recalibrate(net, shown)
    with torch.no_grad():
        seen = [net[0](x).transpose(0, 1).flatten(1) for x in shown]
    torch.testing.assert_close(norm.running_mean, torch.stack([s.mean(1) for s in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([s.var(1) for s in seen]).mean(0))
    assert norm.momentum == 0.2
    assert not net.training
    assert not norm.training


def test_recalibration_changes_statistics_and_nothing_else() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    before = {n: p.clone() for n, p in net.named_parameters()}
    nas.recalibrate(net, [batch()])
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    assert torch.equal(net(batch()), net(batch()))


def test_recalibration_without_pictures_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one batch"):
        nas.recalibrate(nn.BatchNorm2d(3), [])


# -- rewards and health ---------------------------------------------------------------------------


def test_rewards_are_mean_average_precision_by_hand() -> None:
    watch = task(toy_images(per_class=3), "val")
    labels = [i.split("/")[0] for i in watch.ids]
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(2, len(labels), 5)).astype(np.float32)

    def by_hand(q: np.ndarray, g: np.ndarray) -> float:
        q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
        out = []
        for at, label in enumerate(labels):
            others = [o for o in range(len(labels)) if o != at]
            order = sorted(others, key=lambda o: -float(q[at] @ g[o]))
            right = [labels[o] == label for o in order]
            hits = np.cumsum(right) / np.arange(1, len(order) + 1)
            out.append(float(hits[right].mean()))
        return float(np.mean(out))

    found = nas.rewards(watch, query, gallery)
    assert found.r1 == pytest.approx(by_hand(query, query))
    assert found.r2 == pytest.approx(by_hand(query, gallery))
    assert found.r3 == pytest.approx(found.r1 * found.r2)


@pytest.mark.parametrize(
    ("inherited", "alone", "healthy"),
    [((0.2, 0.3), (0.4, 0.4), True), ((0.19, 0.3), (0.4, 0.4), False), ((0.0,), (0.0,), False)],
)
def test_a_supernet_is_healthy_if_every_probe_has_half_of_its_own_score(
    inherited: tuple[float, ...], alone: tuple[float, ...], healthy: bool
) -> None:
    assert nas.judge_health(inherited, alone).healthy is healthy


def test_probes_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 inherited scores and 1"):
        nas.judge_health((0.1, 0.2), (0.1,))


# -- costs ----------------------------------------------------------------------------------------


@pytest.fixture
def net() -> models.EmbeddingNet:
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return models.EmbeddingNet(backbone, 8, 4)


CONVOLUTION, DEPTHWISE, LINEAR = 8 * 3 * 9, 8 * 25, 8 * 4


def test_costs_are_those_counted_by_hand(net: models.EmbeddingNet) -> None:
    macs = 64 * (CONVOLUTION + DEPTHWISE) + LINEAR
    weights = CONVOLUTION + DEPTHWISE + LINEAR
    assert nas.load_cost("macs").of(net, 16) == macs
    assert nas.load_cost("parameters").of(net, 16) == sum(p.numel() for p in net.parameters())
    biases = 8 + 8 + 4
    assert nas.load_cost("size").of(net, 16) == weights + 4 * biases
    assert nas.load_cost("size:fp16").of(net, 16) == 2 * weights + 4 * biases
    assert nas.load_cost("size:fp32").of(net, 16) == 4 * weights + 4 * biases


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("macs:5", "takes no options"),
        ("size:int4", "'int4' is not among"),
        ("latency", "name a table"),
        ("latency:nowhere.csv", "cannot read the latency table"),
        ("os.path", "needs UNIT and cost"),
    ],
)
def test_a_cost_that_means_nothing_is_refused(name: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        nas.load_cost(name)


def test_operators_are_counted_by_class(net: models.EmbeddingNet) -> None:
    assert latency.operators(net, 16) == {
        "conv 3x3 s2 16px": (1, 64 * CONVOLUTION / 1e6),
        "depthwise 5x5 s1 8px": (1, 64 * DEPTHWISE / 1e6),
        "linear": (1, LINEAR / 1e6),
    }


def table_of(done: list[latency.Operators], seed: int = 0) -> latency.Table:
    rng = np.random.default_rng(seed)
    names = sorted({n for d in done for n in d})
    rows = {n: (float(rng.uniform(1e3, 5e3)), float(rng.uniform(1e5, 1e6))) for n in names}
    return latency.Table({latency.BASE: (2e3, 0.0), **rows})


def test_a_table_fitted_to_exact_latencies_predicts_others() -> None:
    space = nas.load_space("elastic:widths=0.25/0.5/1,kernels=3,expands=2/4,last=32")
    rng = np.random.default_rng(0)
    done = [
        latency.operators(models.build(space.backbone(space.draw(rng)), 6, SIZE), SIZE)
        for _ in range(60)
    ]
    truth = table_of(done)
    took = np.array([truth.latency_ms(d) * 1e6 for d in done])
    fitted = latency.fitted(done[:50], took[:50], {})
    assert np.abs(latency.errors(fitted, done[50:], took[50:])).max() < 0.01


def test_a_row_of_a_kind_stands_for_operators_that_have_none() -> None:
    table = latency.Table({"conv": (1e6, 2e6), "conv 3x3 s1 8px": (3e6, 0.0)})
    assert table.latency_ms({"conv 5x5 s1 8px": (2, 1.5)}) == pytest.approx(2 * 1 + 1.5 * 2)
    assert table.latency_ms({"conv 3x3 s1 8px": (1, 1.5)}) == pytest.approx(3)


def test_few_networks_are_explained_by_the_kinds_of_their_operators() -> None:
    done = [{"conv 3x3 s1 8px": (1, 1.0 + at), "conv 5x5 s1 4px": (2, 3.0 * at)} for at in range(3)]
    took = np.array([1e6 * (5 + 2 * (1.0 + 4.0 * at)) for at in range(3)])
    fitted = latency.fitted(done, took, {})
    assert np.abs(latency.errors(fitted, [{"conv 7x7 s1 2px": (3, 8.0)}], np.array([21e6]))) < 0.2


def test_a_table_that_is_off_says_by_how_much() -> None:
    done = [{"linear": (1, 2.0)}]
    table = latency.Table({"linear": (1e6, 1e6)})
    assert latency.errors(table, done, np.array([2e6])) == pytest.approx([0.5])


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = latency.Table({"conv 3x3 s2 16px": (1.5, 2.5), "base": (3.0, 0.0)}, {"device": "pi: 4"})
    table.save(tmp_path / "table.csv")
    assert latency.Table.load(tmp_path / "table.csv") == table


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "has no rows"),
        ("operator,ns_per_call,ns_per_mmac\nconv,fast,1\n", "not a latency table"),
        ("name,ns\nconv,1\n", "not a latency table"),
        ("operator,ns_per_call,ns_per_mmac\nconv,-1,1\n", "times are at least 0"),
        ("operator,ns_per_call,ns_per_mmac\nconv,nan,1\n", "times are at least 0"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        latency.Table.load(path)


def test_an_operator_that_the_table_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    latency.Table({"linear": (1.0, 1.0)}).save(path)
    net = models.build("mobilenet:width=0.25,depth=0.3", 6, SIZE)
    with pytest.raises(ConfigError, match=r"no row for 'conv 3x3 s2 16px' \(\d+ such operators\)"):
        nas.load_cost(f"latency:{path}").of(net, SIZE)


# -- search ---------------------------------------------------------------------------------------

#: 4 x 4 x 4 architectures, whose cost and worth are known.
LETTERS = SearchSpace(
    "letters",
    tuple(Choice(name, (0.0, 1.0, 2.0, 3.0)) for name in "abc"),
    lambda values: "".join(f"{k}{v:g}" for k, v in values.items()),
)
ALL = list(itertools.product((0.0, 1.0, 2.0, 3.0), repeat=3))


def price(architecture: Architecture) -> float:
    a, b, c = architecture
    return 1 + a + 2 * b + 3 * c


def worth(architecture: Architecture) -> Rewards:
    a, b, c = architecture
    return Rewards(0.5, (1 + a + 3 * b + c) / 20)


def look(
    folder: Path, trials: int = 24, most: float = 9, seed: int = 0, **more: object
) -> nas.Found:
    settings = {"score": worth, "identity": "x", **more}
    return nas.search(  # type: ignore[misc]
        LETTERS,
        price,
        budget=nas.Budget("macs", most),
        folder=folder,
        trials=trials,
        population=8,
        seed=seed,
        reporter=quiet(),
        **settings,
    )


def within(most: float) -> Iterator[Architecture]:
    return (a for a in ALL if price(a) <= most)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_finds_what_looking_at_everything_finds(tmp_path: Path, seed: int) -> None:
    found = look(tmp_path, seed=seed)
    best = max(within(9), key=lambda a: (worth(a).r3, -price(a)))
    assert found.best.architecture == best
    assert found.best.cost == price(best) <= 9


def test_the_front_is_what_nothing_beats_at_no_more_cost(tmp_path: Path) -> None:
    found = look(tmp_path)
    fitting = [c for c in found.candidates if c.fits]
    expected = {
        c.backbone
        for c in fitting
        if not any(
            (o.r2 > c.r2 and o.cost <= c.cost) or (o.r2 >= c.r2 and o.cost < c.cost)
            for o in fitting
        )
    }
    costs = [c.cost for c in found.front]
    assert costs == sorted(set(costs))
    # Of several that are equal in both, one stands for all.
    assert {c.backbone for c in found.front} <= expected
    assert {(c.cost, c.r2) for c in found.front} == {
        (c.cost, c.r2) for c in fitting if c.backbone in expected
    }


def test_nothing_above_the_budget_is_scored(tmp_path: Path) -> None:
    scored: list[Architecture] = []

    def score(architecture: Architecture) -> Rewards:
        scored.append(architecture)
        return worth(architecture)

    found = look(tmp_path, score=score)
    assert scored
    assert max(map(price, scored)) <= 9
    assert len(set(scored)) == len(scored)
    assert {c.architecture for c in found.candidates if not c.fits}.isdisjoint(scored)


def test_a_search_stopped_anywhere_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    scored: list[Architecture] = []
    for stop in (1, 2, 5, 11, 100):

        def score(architecture: Architecture, stop: int = stop) -> Rewards:
            if len(scored) == stop:
                raise KeyboardInterrupt
            scored.append(architecture)
            return worth(architecture)

        if stop < 100:
            with pytest.raises(KeyboardInterrupt):
                look(tmp_path, trials=20, score=score)
        else:
            found = look(tmp_path, trials=20, score=score)
    assert len(scored) == len(set(scored)) == 20
    assert [c.architecture for c in found.candidates if c.fits] == scored
    assert found == look(tmp_path / "undisturbed", trials=20)


def test_a_finished_search_is_read_and_not_run(tmp_path: Path) -> None:
    first = look(tmp_path, trials=10)

    def never(architecture: Architecture) -> Rewards:
        raise AssertionError(architecture)

    assert look(tmp_path, trials=10, score=never) == first


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    look(tmp_path, trials=3)
    with pytest.raises(ConfigError, match="holds another search"):
        look(tmp_path, trials=3, identity="y")


def test_a_budget_that_nothing_fits_says_what_the_cheapest_costs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of .* costs at most 0\.5 .* costs 1"):
        _ = look(tmp_path, trials=4, most=0.5).best
    with pytest.raises(ConfigError, match="above 0"):
        nas.Budget("macs", 0)


def test_of_equals_the_cheapest_is_the_best() -> None:
    dear = nas.Candidate("dear", (1.0,), 5.0, 0.5, 0.5, True)
    cheap = replace(dear, backbone="cheap", cost=4.0)
    found = nas.Found((dear, cheap), "r3", nas.Budget("macs", 9))
    assert found.best == cheap
    assert found.front == (cheap,)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(825_700, "825.7k"), (1_090_000, "1.09M"), (2e9, "2G"), (999.96, "1000"), (0.0612, "0.0612")],
)
def test_a_cost_is_said_as_the_command_line_takes_it(amount, text):
    from hetero.cli.search import number
    from hetero.nas.search import spoken

    assert spoken(amount) == text
    assert number(text) == pytest.approx(amount, rel=1e-3)
