from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from toys import quiet

from hetero import lqf, models
from hetero.errors import ConfigError
from hetero.lqf import DualStream, train

SPECS = (
    "resnet:width=4",
    "resnet:width=8,depth=18",
    "mobilenet:width=0.25,depth=0.3",
    "mobilenet:width=0.5,se=1,act=hswish",
    "elastic:width=0.25",
    "shufflenet:width=0.2,last=16",
    "leaky:resnet:width=4",
)


def classifier(spec: str = "resnet:width=4", classes: int = 5, size: int = 16) -> nn.Module:
    """A backbone with a linear layer on it, whose batch statistics are not those of a new one."""
    torch.manual_seed(0)
    backbone = models.backbone(spec)
    features = backbone.eval()(torch.zeros(1, 3, size, size)).shape[1]
    net = nn.Sequential(backbone, nn.Linear(features, classes)).train()
    for _ in range(3):
        net(torch.randn(16, 3, size, size))
    return net.eval()


def some(net: nn.Module, share: float = 0.05, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: share
        * p.std().nan_to_num(1.0).clamp_min(0.1)
        * torch.randn(p.shape, generator=generator)
        for n, p in net.named_parameters()
    }


def pictures(count: int = 4, size: int = 16, seed: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# -- the model ------------------------------------------------------------------------------------


def linearised(spec: str = "resnet:width=4") -> DualStream:
    """In float64, so that what is compared is not rounding."""
    return DualStream(classifier(spec).double(), pictures().double())


def change_of(model: DualStream, seed: int = 1) -> dict[str, Tensor]:
    drawn = some(model.net, seed=seed)
    return {n: drawn[n].double() for n in model.delta}


# PyTorch's own forward mode compiles by what PyTorch calls deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("spec", SPECS)
def test_the_dual_stream_is_the_jacobian_vector_product(spec: str) -> None:
    model, x = linearised(spec), pictures().double()
    delta = change_of(model)
    model.add(delta)
    weights = {n: model.net.get_parameter(n) for n in delta}
    value, change = jvp(lambda w: functional_call(model.net, w, (x,)), (weights,), (delta,))
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(model(x), value + change, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS[:3])
def test_the_dual_stream_is_the_limit_of_finite_differences(spec: str) -> None:
    model, x, step = linearised(spec), pictures().double(), 1e-6
    delta = change_of(model)
    model.add(delta)

    def at(share: float) -> Tensor:
        moved = {n: model.net.get_parameter(n) + share * d for n, d in delta.items()}
        return functional_call(model.net, moved, (x,))

    expected = (at(step) - at(-step)) / (2 * step)
    found = model(x) - model.net(x)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-3


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 2, 1), (2, None, 0), ((3, 2), (1, 2), (1, 0))]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_max_pooling_passes_on_the_change_of_the_largest(
    size: Any, stride: Any, padding: Any
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(size, stride, padding), nn.Flatten(), nn.LazyLinear(3)
    )
    net(pictures(2, 9))
    model, x = DualStream(net.double(), pictures(2, 9).double()), pictures(3, 9, 5).double()
    delta = change_of(model)
    model.add(delta)
    torch.testing.assert_close(model(x), lqf.by_jvp(net, delta, x), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bounds_of_activations_stop_a_change() -> None:
    torch.manual_seed(0)
    for act in (nn.ReLU6(), nn.Hardtanh(-0.5, 0.5), nn.LeakyReLU(0.3), nn.ReLU(inplace=True)):
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 30), act, nn.Linear(30, 3)).double()
        with torch.no_grad():
            net[1].weight.mul_(20)  # so that every bound is met
        x = pictures(6, 2).double()
        model = DualStream(net, x[:2])
        delta = change_of(model)
        model.add(delta)
        torch.testing.assert_close(model(x), lqf.by_jvp(net, delta, x), rtol=1e-10, atol=1e-10)


def test_activations_that_are_not_leaky_are_counted() -> None:
    assert linearised("leaky:resnet:width=4").silent == 0
    assert linearised("resnet:width=4").silent == 9


def test_the_jvp_is_that_of_a_function_one_can_differentiate_by_hand() -> None:
    # (w·x)² has the derivative 2·(w·x)·x in w.
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(2, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.line(x) * self.line(x)

    net = Squared()
    with torch.no_grad():
        net.line.weight.copy_(torch.tensor([[2.0, 3.0]]))
    found = lqf.by_jvp(
        net, {"line.weight": torch.tensor([[1.0, -1.0]])}, torch.tensor([[1.0, 4.0]])
    )
    # w·x = 14; 196 + 2 · 14 · (1 - 4)
    assert found.item() == pytest.approx(196 - 84)


def test_a_model_without_a_change_is_the_net() -> None:
    model = linearised()
    for count in (1, 4, 7):
        x = pictures(count).double()
        torch.testing.assert_close(model(x), model.net(x))


def test_changes_add_subtract_and_average_exactly() -> None:
    model, x = linearised(), pictures().double()
    a, b = change_of(model, 1), change_of(model, 2)

    def outputs(*parts: tuple[dict[str, Tensor], float]) -> Tensor:
        model.forget()
        for delta, share in parts:
            model.add(delta, share)
        return model(x).detach()

    none = outputs()
    torch.testing.assert_close(
        outputs((a, 1), (b, 1)) - none, outputs((a, 1)) + outputs((b, 1)) - 2 * none
    )
    torch.testing.assert_close(outputs((a, 1), (b, 1), (b, -1)), outputs((a, 1)))
    torch.testing.assert_close(outputs((a, 0.5), (b, 0.5)), (outputs((a, 1)) + outputs((b, 1))) / 2)


def test_a_change_of_another_net_is_refused() -> None:
    with pytest.raises(ConfigError, match="other parameters"):
        linearised().add({"weight": torch.zeros(1)})


def test_an_operator_without_a_rule_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match=r"gelu.* has no rule here"):
        DualStream(net, pictures())


def test_a_net_that_looks_at_values_is_refused() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ConfigError, match="cannot be traced"):
        DualStream(Odd(), pictures())


# -- training -------------------------------------------------------------------------------------


def tiny() -> tuple[DualStream, Tensor, Tensor]:
    """A net small enough for its Jacobian to be written out."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (24,), generator=generator)
    return DualStream(net.double(), x[:2]), x, labels


def closed_form(model: DualStream, x: Tensor, labels: Tensor, settings: lqf.Settings) -> Tensor:
    """The optimum's outputs, by solving the normal equations of the written-out Jacobian."""
    names = [n for n, _ in model.net.named_parameters()]
    weights = {n: p.detach() for n, p in model.net.named_parameters()}
    jacobian = torch.func.jacrev(lambda w: functional_call(model.net, w, (x,)))(weights)
    rows = torch.cat([jacobian[n].flatten(2) for n in names], 2).flatten(0, 1).numpy()
    start = model.net(x).detach().flatten().numpy()
    aim = settings.alpha * nn.functional.one_hot(labels, 3).double().flatten().numpy()
    hessian = rows.T @ rows / len(x) + settings.pull * np.eye(rows.shape[1])
    best = np.linalg.solve(hessian, rows.T @ (aim - start) / len(x))
    return torch.from_numpy(start + rows @ best).reshape(len(x), 3)


@pytest.mark.parametrize(("optimizer", "lr", "epochs"), [("kfac", 1.0, 200), ("adam", 0.05, 1000)])
def test_training_ends_in_the_one_optimum(optimizer: str, lr: float, epochs: int) -> None:
    model, x, labels = tiny()
    settings = lqf.Settings(
        epochs=epochs,
        batch=24,
        lr=lr,
        alpha=2.0,
        pull=1e-2,
        optimizer=optimizer,  # type: ignore[arg-type]
    )
    lqf.fit(model, x, labels, settings, reporter=quiet())
    expected = closed_form(model, x, labels, settings)
    assert (model(x) - expected).abs().max().item() < 1e-2


def test_a_step_is_the_lowest_point_of_the_plane_it_may_move_in() -> None:
    # Six values of a quadratic of two numbers give all its coefficients, and those its minimum.
    model, x, labels = tiny()
    settings = lqf.Settings(alpha=2.0, pull=0.1)
    generator = torch.Generator().manual_seed(3)
    changes = list(model.changes.values())
    a, b = (
        [size * torch.randn(c.shape, generator=generator, dtype=c.dtype) for c in changes]
        for size in (0.1, 3.0)
    )

    def at(u: float, v: float) -> float:
        with torch.no_grad():
            for change, one, two in zip(changes, a, b, strict=True):
                change.copy_(u * one + v * two)
            return float(lqf.objective(model, x, labels, settings))

    zero = at(0, 0)
    uu, vv = at(1, 0) + at(-1, 0) - 2 * zero, at(0, 1) + at(0, -1) - 2 * zero
    uv = at(1, 1) - at(1, 0) - at(0, 1) + zero
    slope = [(at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2]
    u, v = -np.linalg.solve([[uu, uv], [uv, vv]], slope)
    model.forget()
    gradient = torch.autograd.grad(lqf.objective(model, x, labels, settings), changes)
    found = train._best_step(model, x, gradient, [a, b], settings.pull)
    for part, one, two in zip(found, a, b, strict=True):
        torch.testing.assert_close(part, u * one + v * two, rtol=1e-6, atol=1e-9)


def test_two_seeds_end_in_the_same_model() -> None:
    ends = []
    for seed in (0, 1):
        model, x, labels = tiny()
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            for change in model.changes.values():
                change += 0.1 * torch.randn(change.shape, generator=generator, dtype=change.dtype)
        settings = lqf.Settings(epochs=200, batch=24, lr=1.0, alpha=2.0, pull=1e-2, seed=seed)
        lqf.fit(model, x, labels, settings, reporter=quiet())
        ends.append(model(x).detach())
    assert (ends[0] - ends[1]).abs().max().item() < 1e-2


def test_the_objective_by_hand() -> None:
    model, x, labels = tiny()
    settings = lqf.Settings(alpha=2.0, pull=0.1)
    with torch.no_grad():
        model.changes["4/bias"] += torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    outputs = model(x).detach().numpy()
    aim = 2.0 * np.eye(3)[labels.numpy()]
    expected = 0.5 * ((outputs - aim) ** 2).sum(1).mean() + 0.5 * 0.1 * 9
    assert lqf.objective(model, x, labels, settings).item() == pytest.approx(expected)


def test_a_customer_is_forgotten_by_training_on_without_them() -> None:
    # The optimum does not depend on the start: what is left is as if the rest alone had been seen.
    model, x, labels = tiny()
    settings = lqf.Settings(epochs=200, batch=24, lr=1.0, alpha=2.0, pull=1e-2)
    lqf.fit(model, x, labels, settings, reporter=quiet())
    both = model(x).detach()
    lqf.fit(model, x[:16], labels[:16], settings, reporter=quiet())
    expected = closed_form(model, x[:16], labels[:16], settings)
    assert (model(x[:16]) - expected).abs().max().item() < 1e-2
    assert (both[:16] - expected).abs().max().item() > 0.1


def test_changes_learnt_apart_add_their_outputs_but_are_not_what_is_learnt_together() -> None:
    settings = lqf.Settings(epochs=200, batch=24, lr=1.0, alpha=2.0, pull=1e-2)
    model, x, labels = tiny()
    plain, deltas, gained = model(x).detach(), [], []
    for part in (slice(0, 12), slice(12, 24)):
        model.forget()
        lqf.fit(model, x[part], labels[part], settings, reporter=quiet())
        deltas.append(model.delta)
        gained.append(model(x).detach() - plain)
    model.forget()
    for delta in deltas:
        model.add(delta)
    torch.testing.assert_close(model(x).detach(), plain + gained[0] + gained[1])
    together = closed_form(model, x, labels, settings)
    assert (model(x) - together).abs().max().item() > 0.1


@pytest.mark.parametrize("changed", [{"epochs": 0}, {"lr": 0.0}, {"alpha": -1.0}, {"damping": 0.0}])
def test_settings_out_of_range_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="LQF"):
        lqf.Settings(**changed)  # type: ignore[arg-type]
