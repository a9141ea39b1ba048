"""Training whose backbone computes in half, on the CPU."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_fit import Sums, bits, run
from test_train import SHORT, gallery_model, history, query_model
from torch import nn
from toys import Tripwire, weights

from hetero import methods, models
from hetero._mixed import mixed
from hetero.cli._helpers import precision
from hetero.errors import ConfigError, Interrupted
from hetero.fit import Settings
from hetero.methods import Step
from hetero.train import QueryRecipe

CPU = torch.device("cpu")
HALF = replace(SHORT, mixed_precision="bf16")


def net() -> models.EmbeddingNet:
    torch.manual_seed(0)
    return models.build("resnet:width=4", 6, 16)


def dtypes(net: models.EmbeddingNet) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """What the first convolution, the embedding layer and the whole give."""
    seen: list[torch.dtype] = []
    parts = (next(m for m in net.modules() if isinstance(m, nn.Conv2d)), net.projection[0])
    hooks = [p.register_forward_hook(lambda _, __, out: seen.append(out.dtype)) for p in parts]
    rows = net(torch.rand(2, 3, 16, 16))
    for hook in hooks:
        hook.remove()
    return seen[0], seen[1], rows.dtype


@pytest.mark.parametrize(("name", "half"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_backbone_computes_in_half_and_what_follows_in_float32(
    name: Any, half: torch.dtype
) -> None:
    one = net().train()
    with mixed(one, name, CPU):
        assert dtypes(one) == (half, torch.float32, torch.float32)
        assert dtypes(one.eval()) == (torch.float32,) * 3, "validation is of the model as it is"
    assert dtypes(one.train()) == (torch.float32,) * 3


def test_without_mixed_precision_nothing_is_touched() -> None:
    one = net().train()
    before = {name: dict(part.__dict__) for name, part in one.named_modules()}
    with mixed(one, "no", CPU):
        assert {name: dict(part.__dict__) for name, part in one.named_modules()} == before


def test_a_net_without_a_backbone_is_cast_whole_and_gives_float32() -> None:
    inside = nn.Linear(4, 3)
    seen: list[torch.dtype] = []
    inside.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    whole = nn.Sequential(inside, nn.ReLU())
    with mixed(whole, "bf16", CPU):
        assert whole(torch.rand(2, 4)).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_a_forward_pass_that_fails_does_not_leave_the_rest_in_half() -> None:
    one = net().train()
    with mixed(one, "bf16", CPU):
        with pytest.raises(RuntimeError):
            one.backbone(torch.rand(2, 5, 16, 16))
        assert not torch.is_autocast_enabled("cpu")
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float32


def test_a_gallery_model_learns_in_bf16_what_it_learns_in_float32(tmp_path: Path) -> None:
    full, half = (
        gallery_model(tmp_path / name, replace(SHORT, epochs=6, mixed_precision=name))
        for name in ("no", "bf16")
    )
    losses = [row["loss"] for row in history(tmp_path / "bf16")]
    assert losses[-1] < losses[0] - 0.5
    # Processors that multiply bf16 themselves round otherwise than those that do it in float32.
    assert losses == pytest.approx([row["loss"] for row in history(tmp_path / "no")], rel=0.1)
    assert weights(full.root) != weights(half.root)
    rows, theirs = (b.tensors("probe")["vectors"] for b in (full, half))
    assert (rows * theirs).sum(1).min() > 0.98
    # The bundle's weights, and the vectors it is known by, are float32.
    assert {v.dtype for v in half.tensors("weights").values()} <= {np.dtype("f4"), np.dtype("i8")}
    assert half.manifest.recipe["train.mixed_precision"] == "bf16"


def test_a_method_sees_float32_rows_of_length_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.dtype, float, bool]] = []
    loss_of = methods.loss_of

    def spy(method: methods.Method, step: Step, own: nn.Module) -> torch.Tensor:
        far = float((step.query.detach().norm(dim=1) - 1).abs().max())
        seen.append((step.query.dtype, far, torch.is_autocast_enabled("cpu")))
        return loss_of(method, step, own)

    monkeypatch.setattr(methods, "loss_of", spy)
    gallery = gallery_model(tmp_path / "gallery", replace(SHORT, epochs=1))
    recipe = QueryRecipe("mobilenet:width=0.25,depth=0.3", views=1)
    query_model(tmp_path / "query", gallery, replace(HALF, epochs=1), recipe)
    assert len(seen) == 3
    assert all(dtype == torch.float32 and far < 1e-6 for dtype, far, _ in seen)
    assert not any(cast for _, _, cast in seen)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_stopped_run_in_half_goes_on_to_the_same_bits(tmp_path: Path, name: Any) -> None:
    how = Settings(epochs=3, batch=8, mixed_precision=name)
    whole, _ = run(tmp_path / "whole", how)
    stop = Tripwire("train", 4, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", how, reporter=stop)
    parts, _ = run(tmp_path / "parts", how, resume=True)
    assert bits(parts) == bits(whole)
    assert bits(whole) != bits(run(tmp_path / "full", Settings(epochs=3, batch=8))[0])


def test_a_checkpoint_of_another_precision_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Settings(epochs=3, batch=8, mixed_precision="bf16"))
    with pytest.raises(ConfigError, match=r"differs in settings\.mixed_precision"):
        run(tmp_path, Settings(epochs=3, batch=8), resume=True)


class Steep(Sums):
    """The same, with a loss whose gradient overflows under the first loss scales."""

    def forward(self, *given: Any) -> torch.Tensor:
        return 1e3 * super().forward(*given)


def test_in_fp16_a_step_that_overflows_is_left_out_and_the_scale_lowered(tmp_path: Path) -> None:
    steps: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **more: Any) -> Any:
        steps.append(self.param_groups[0]["lr"])
        return original(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        objective, _ = run(
            tmp_path, Settings(epochs=6, batch=8, mixed_precision="fp16"), make=Steep
        )
    assert 0 < len(steps) < 18
    assert all(torch.isfinite(p).all() for p in objective.parameters())
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["scaler"]["scale"] == 65536.0 / 2 ** (18 - len(steps))
    assert state["schedule"]["last_epoch"] == len(steps)


def test_what_is_no_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="--mixed-precision 'half': there are no, bf16, fp16"):
        precision("half")
    with pytest.raises(ConfigError, match="use --mixed-precision bf16"):
        Settings(mixed_precision="fp16", shard=True)


def test_runs_of_before_there_was_a_choice_keep_their_identity() -> None:
    assert {"mixed_precision", "shard"}.isdisjoint(Settings().identity())
    chosen = Settings(mixed_precision="bf16", shard=True).identity()
    assert (chosen["mixed_precision"], chosen["shard"]) == ("bf16", True)
