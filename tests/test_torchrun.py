"""Training started by torchrun: two processes on this machine, gradients averaged over gloo.

One run of torchrun does everything that takes two processes, and writes down what it saw; the tests
look at that, and do by themselves what one process would.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import test_methods
import test_pct
import torch
from test_fit import PICTURES, WELL, Sums
from test_train import gallery_model, query_model
from torch import Tensor, nn
from toys import QUERY, Listener, quiet, toy_images, weights

import hetero
from hetero import methods
from hetero._processes import joined, processes
from hetero.bundle import Bundle
from hetero.errors import ConfigError, Interrupted
from hetero.fit import Check, Settings, fit
from hetero.pct import methods as pct_methods
from hetero.train import QueryRecipe, _stored, train_widths
from hetero.train.query import QueryObjective

SHORT = Settings(epochs=2, batch=16)
RECIPE = QueryRecipe(QUERY, "bct", views=2)
NOWHERE: dict[str, Any] = {
    "folder": Path("nowhere"),
    "identity": {},
    "validate": lambda net: WELL,
    "resume": False,
    "reporter": quiet(),
    "what": "train",
}
WIDTHS = (0.25, 0.5, 0.75, 1.0)

# -- what one process and two do alike ------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A user's own, which compares rows and does not say so."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def own(self, setup: methods.Setup) -> nn.Module:
        return nn.Identity()

    def loss(self, step: methods.Step, own: nn.Module) -> Tensor:
        return (step.query @ step.query.T - step.gallery @ step.gallery.T).abs().mean()


HELD: dict[str, methods.Method] = {
    **{name: methods.make(name) for name in test_methods.NAMES},
    "bct of some classes": methods.make("bct", {"synthesise": False}),
    "aml of labels": methods.make("aml", {"form": "contrastive", "label": True}),
    "a sum": methods.make("csd+raml"),
    "a user's own": Method(),
}
#: Of a batch of 12 rows, those of each process.
EVEN = (slice(0, None, 2), slice(1, None, 2))
UNEVEN = (slice(0, 9), slice(9, None))


class Query(nn.Module):
    """A net of one layer, held by a method: the loss of some rows of a batch."""

    def __init__(self, method: methods.Method) -> None:
        super().__init__()
        self.method = method
        self.setup = test_methods.a_setup()
        torch.manual_seed(5)
        self.own = self.method.own(self.setup)
        self.net = nn.Linear(6, test_methods.DIM)
        self.step = test_methods.a_step(self.setup)
        self.inputs = torch.randn(len(self.step.rows), 6)

    def forward(self, some: slice) -> Tensor:
        query = nn.functional.normalize(self.net(self.inputs[some]), dim=1)
        named = ("gallery", "rows", "labels", "independent")
        theirs = {name: getattr(self.step, name)[some] for name in named}
        return methods.loss_of(self.method, replace(self.step, query=query, **theirs), self.own)


class Classifier(nn.Module):
    """The same, of a classifier after an old one."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.method = pct_methods.make(name)
        torch.manual_seed(5)
        self.net = nn.Linear(6, test_pct.FEATURES)
        self.head = nn.Linear(test_pct.FEATURES, test_pct.CLASSES)
        steps = [test_pct.a_step(seed) for seed in (0, 1)]
        self.inputs = torch.randn(12, 6)
        self.step = steps[0]
        self.labels, self.old = (
            torch.cat([getattr(step, name) for step in steps])[:12] for name in ("labels", "old")
        )

    def forward(self, some: slice) -> Tensor:
        features = self.net(self.inputs[some])
        given = {"labels": self.labels[some], "old": self.old[some]}
        step = replace(self.step, logits=self.head(features), features=features, **given)
        return pct_methods.loss_of(self.method, step)


def held() -> dict[str, nn.Module]:
    """Everything that has a loss of a batch, by name."""
    classifiers = {f"pct {n}": Classifier(n) for n in test_pct.NAMES}
    return {**{name: Query(method) for name, method in HELD.items()}, **classifiers}


def sums(folder: Path, me: int = 0, **more: Any) -> tuple[Sums, list[float]]:
    """A run without batch statistics, whose result must not depend on the number of processes."""

    def found(net: torch.nn.Module) -> Check:
        assert me == 0, "only the main process validates"
        return WELL

    torch.manual_seed(7)
    objective = Sums()
    history = fit(
        objective,
        PICTURES,
        Settings(epochs=3, batch=8, **more),
        folder=folder,
        identity={},
        validate=found,
        resume=False,
        reporter=quiet(),
        what="train",
    )
    assert [e.score for e in history] == [WELL.score] * 3
    return objective, [e.loss for e in history]


# -- what torchrun starts -------------------------------------------------------------------------


def gathered(me: int) -> dict[str, Any]:
    """What `joined` gives of uneven parts, forwards and backwards."""
    mine = (torch.arange(6.0).reshape(3, 2), torch.tensor([[10.0, 11.0]]))[me].requires_grad_()
    labels = torch.arange(len(mine)) + 100 * me
    rows, numbers = joined(mine, labels)
    # Each process says something else of each row.
    says = torch.arange(8.0).reshape(4, 2) + 100 * me
    (rows * says).sum().backward()
    assert mine.grad is not None
    return {"rows": rows.tolist(), "labels": numbers.tolist(), "gradient": mine.grad.tolist()}


def in_parts(me: int) -> dict[str, Any]:
    """Loss and gradients under DDP, of every method, of a batch shared evenly and unevenly."""
    seen: dict[str, Any] = {}
    for how, parts in (("even", EVEN), ("uneven", UNEVEN)):
        for name, module in held().items():
            if how == "uneven" and not getattr(module.method, "whole_batch", True):
                continue
            run = nn.parallel.DistributedDataParallel(module)  # averages for as long as it is kept
            loss = run(parts[me])
            loss.backward()
            found = {n: p.grad.tolist() for n, p in module.named_parameters() if p.grad is not None}
            seen[f"{name}, {how}"] = [loss.item(), found]
    return seen


def sharded(root: Path, me: int) -> dict[str, Any]:
    """A model cut in two: trained at once, and stopped and gone on with."""
    how = replace(SHORT, shard=True)
    seen: dict[str, Any] = {}
    objective, seen["losses"] = sums(root / "shards", me, shard=True)
    seen["weights"] = [p.tolist() for p in objective.net.parameters()]
    copies, step = list[torch.optim.Optimizer](), torch.optim.AdamW.step

    def interrupted(self: torch.optim.AdamW, *args: Any, **more: Any) -> Any:
        copies.append(self)
        if me == 1 and len(copies) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args, **more)

    gallery_model(root / "sharded", how)
    torch.optim.AdamW.step = interrupted  # type: ignore[method-assign, assignment]
    try:
        gallery_model(root / "stopped", how)
    except Interrupted:
        seen["stopped_after"] = len(copies)
    gallery_model(root / "stopped", how, resume=True)
    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    numbers = {
        kind: sum(t.numel() for t in found)
        for kind, found in (
            ("kept", [p.to_local() for g in copies[0].param_groups for p in g["params"]]),
            ("moments", [s["exp_avg"].to_local() for s in copies[0].state.values()]),
            ("whole", [p for g in copies[0].param_groups for p in g["params"]]),
        )
    }
    return {**seen, **numbers}


def several(root: Path, gallery: Bundle) -> list[Any]:
    """What each step of a training of several widths chose."""
    chosen: list[Any] = []
    choose = QueryObjective.choose

    def spy(self: QueryObjective) -> None:
        choose(self)
        chosen.append(self._chosen)

    QueryObjective.choose = spy  # type: ignore[method-assign]
    recipe = QueryRecipe(QUERY, "raml", views=1)
    train_widths(gallery, toy_images(), recipe, WIDTHS, SHORT, root / "widths", reporter=quiet())
    QueryObjective.choose = choose  # type: ignore[method-assign]
    return chosen


def in_each_process(root: Path) -> None:
    """What torchrun starts twice; each process writes down what it saw."""
    me = processes().process_index
    written: list[str] = []
    seen: dict[str, Any] = {"world": processes().num_processes, "written": written}
    write_bundle, write_file, step = Bundle.create, _stored._embed_views, torch.optim.AdamW.step

    def create(path: Path, **more: Any) -> Bundle:
        written.append(path.name)
        return write_bundle(path, **more)

    def write(path: Path, *more: Any) -> None:
        written.append("stored vectors")
        write_file(path, *more)

    Bundle.create = create  # type: ignore[method-assign, assignment]
    _stored._embed_views = write

    objective, seen["losses"] = sums(root / "sums", me)
    seen["rows"] = [rows for rows, _, _ in objective.calls]
    seen["weights"] = [p.tolist() for p in objective.net.parameters()]

    listener = Listener()
    gallery = gallery_model(root / "gallery", SHORT, reporter=listener)
    seen["gallery"], seen["jobs"] = gallery.digest, sorted(listener.jobs)

    # One process alone is interrupted, after its second step.
    steps: list[int] = []

    def interrupted(self: torch.optim.AdamW, *args: Any, **more: Any) -> Any:
        steps.append(1)
        if me == 1 and len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args, **more)

    torch.optim.AdamW.step = interrupted  # type: ignore[method-assign, assignment]
    try:
        query_model(root / "query", gallery, SHORT, RECIPE)
    except Interrupted:
        seen["stopped_after"] = len(steps)
    query = query_model(root / "query", gallery, SHORT, RECIPE, resume=True)
    seen["steps"], seen["query"] = len(steps), query.digest
    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    seen["written"] = [*written]

    seen["joined"], seen["parts"] = gathered(me), in_parts(me)
    seen["sharded"] = sharded(root, me)
    seen["chosen"] = several(root, gallery)
    try:
        fit(objective, PICTURES, Settings(batch=9), **NOWHERE)
    except ConfigError as error:
        seen["refused"] = str(error)
    (root / f"{me}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a run of two processes, and what each of them saw."""
    root = tmp_path_factory.mktemp("torchrun")
    script = root / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom test_torchrun import in_each_process\n"
        "in_each_process(Path(sys.argv[1]))\n"
    )
    here = [str(Path(__file__).parent), str(Path(hetero.__file__).parents[1])]
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.Popen(
        [*argv, str(script), str(root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(here), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = run.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        # Asked to end, it ends its processes too; they would wait for each other for long.
        run.terminate()
        pytest.fail(f"the two processes did not end: {run.communicate()[1][-3000:]}")
    assert run.returncode == 0, said[-3000:]
    return root, [json.loads((root / f"{me}.json").read_text()) for me in range(2)]


def test_two_processes_make_one_run(seen: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [s["world"] for s in seen[1]] == [2, 2]


def test_each_picture_of_an_epoch_is_seen_by_one_process(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    one, other = (s["rows"] for s in seen[1])
    assert [len(rows) for rows in (*one, *other)] == [4] * 18
    for epoch in range(3):
        some = [
            row for rows in (one, other) for at in rows[3 * epoch : 3 * epoch + 3] for row in at
        ]
        assert sorted(some) == list(range(24))


def test_two_processes_learn_what_one_would(
    seen: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    alone, losses = sums(tmp_path)
    for of_process in seen[1]:
        assert of_process["losses"] == pytest.approx(losses, rel=1e-4)
        for got, expected in zip(of_process["weights"], alone.net.parameters(), strict=True):
            torch.testing.assert_close(torch.tensor(got), expected, rtol=1e-4, atol=1e-6)


def test_the_main_process_alone_writes_and_speaks(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    main, other = seen[1]
    # The stored vectors once, though the run was interrupted and continued.
    assert main["written"] == ["gallery", "stored vectors", "query"]
    assert other["written"] == []
    assert "train gallery" in main["jobs"]
    assert other["jobs"] == []


def test_both_processes_return_the_same_finished_bundles(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    root, (main, other) = seen
    for name in ("gallery", "query"):
        assert main[name] == other[name] == Bundle.load(root / name).digest
    assert Bundle.load(root / "query").space == Bundle.load(root / "gallery").space
    assert [p.name for p in (root / "query" / "training").iterdir()] == ["history.json"]
    assert weights(root / "query")


def test_an_interrupt_of_one_process_stops_both_and_both_go_on(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    assert [s["stopped_after"] for s in seen[1]] == [2, 2]
    assert [s["steps"] for s in seen[1]] == [6, 6]


# -- losses of a batch that the processes share ---------------------------------------------------


def test_rows_are_joined_in_the_order_of_the_processes_even_where_one_has_more(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    for of_process in seen[1]:
        assert of_process["joined"]["rows"] == [[0, 1], [2, 3], [4, 5], [10, 11]]
        assert of_process["joined"]["labels"] == [0, 1, 2, 100]


def test_a_rows_gradient_is_the_sum_of_what_the_processes_say_of_it(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    said = np.arange(8.0).reshape(4, 2) * 2 + 100
    one, other = (s["joined"]["gradient"] for s in seen[1])
    assert [*one, *other] == said.tolist()


def test_of_one_process_the_rows_are_the_rows() -> None:
    rows, labels = torch.ones(2, 3), torch.ones(2)
    some = joined(rows, labels)
    assert some[0] is rows
    assert some[1] is labels


CASES = [f"{n}, even" for n in (*HELD, *(f"pct {n}" for n in test_pct.NAMES))]
WHOLE = ("aml", "pkt", "ract", "raml", "rkd", "bct of some classes", "aml of labels")


@pytest.mark.parametrize(
    "case", CASES + [f"{n}, uneven" for n in (*WHOLE, "a user's own", "pct bct")]
)
def test_two_processes_have_the_loss_and_the_gradients_of_one_with_the_joined_batch(
    seen: tuple[Path, list[dict[str, Any]]], case: str
) -> None:
    module = held()[case.rpartition(", ")[0]]
    loss = module(slice(None))
    loss.backward()
    of_both = [s["parts"][case] for s in seen[1]]
    assert np.mean([found for found, _ in of_both]) == pytest.approx(loss.item(), rel=1e-5)
    wanted = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert any(g.abs().max() > 1e-3 for g in wanted.values())
    for _, gradients in of_both:
        assert list(gradients) == list(wanted)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                torch.tensor(gradient), wanted[name], rtol=1e-4, atol=1e-6, msg=name
            )


def test_every_method_that_compares_rows_was_tried_with_uneven_parts(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    uneven = {case.rpartition(", ")[0] for case in seen[1][0]["parts"] if "uneven" in case}
    assert uneven == {*WHOLE, "a user's own", "pct bct"}


def test_a_batch_that_would_be_uneven_is_refused(seen: tuple[Path, list[dict[str, Any]]]) -> None:
    for of_process in seen[1]:
        assert "one batch of 9 over 2 processes" in of_process["refused"]


def test_both_processes_train_the_same_ones_of_several_widths(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    root, (one, other) = seen
    assert one["chosen"] == other["chosen"]
    assert {middle for _, middle, _ in one["chosen"]} == {1, 2}
    assert all(weights(root / "widths" / f"width-{width:g}") for width in WIDTHS)


# -- a model cut over the processes ---------------------------------------------------------------


def test_a_model_cut_in_two_learns_what_a_whole_one_does(
    seen: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    alone, losses = sums(tmp_path)
    for of_process in seen[1]:
        assert of_process["sharded"]["losses"] == pytest.approx(losses, rel=1e-4)
        found = of_process["sharded"]["weights"]
        for got, expected in zip(found, alone.net.parameters(), strict=True):
            torch.testing.assert_close(torch.tensor(got), expected, rtol=1e-4, atol=1e-6)


def test_a_gallery_model_cut_in_two_is_stored_whole_and_near_the_one_by_ddp(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    root = seen[0]
    whole, parts = (Bundle.load(root / n).tensors("weights") for n in ("gallery", "sharded"))
    assert {k: v.shape for k, v in whole.items()} == {k: v.shape for k, v in parts.items()}
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-3, atol=1e-3, err_msg=name)
    rows, theirs = (
        Bundle.load(root / n).tensors("probe")["vectors"] for n in ("gallery", "sharded")
    )
    assert (rows * theirs).sum(1).min() > 0.999


def test_each_process_keeps_its_share_of_weights_and_moments(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    one, other = (s["sharded"] for s in seen[1])
    for kind in ("kept", "moments"):
        assert one[kind] + other[kind] == one["whole"]
        assert max(one[kind], other[kind]) < 0.6 * one["whole"]


def test_a_cut_model_that_was_stopped_goes_on_to_the_same_bits(
    seen: tuple[Path, list[dict[str, Any]]],
) -> None:
    root, both = seen
    assert [s["sharded"]["stopped_after"] for s in both] == [2, 2]
    assert weights(root / "stopped") == weights(root / "sharded")
