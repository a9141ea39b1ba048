"""Training started by torchrun: two processes on this machine, gradients averaged over gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fit import PICTURES, WELL, Sums
from test_train import gallery_model, query_model
from toys import QUERY, Listener, quiet, weights

import hetero
from hetero._processes import processes
from hetero.bundle import Bundle
from hetero.errors import Interrupted
from hetero.fit import Check, Settings, fit
from hetero.train import QueryRecipe, _stored

SHORT = Settings(epochs=2, batch=16)
RECIPE = QueryRecipe(QUERY, "bct", views=2)


def sums(folder: Path, me: int = 0) -> tuple[Sums, list[float]]:
    """A run without batch statistics, whose result must not depend on the number of processes."""

    def found(net: torch.nn.Module) -> Check:
        assert me == 0, "only the main process validates"
        return WELL

    torch.manual_seed(7)
    objective = Sums()
    history = fit(
        objective,
        PICTURES,
        Settings(epochs=3, batch=8),
        folder=folder,
        identity={},
        validate=found,
        resume=False,
        reporter=quiet(),
        what="train",
    )
    assert [e.score for e in history] == [WELL.score] * 3
    return objective, [e.loss for e in history]


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
        written.append(path.suffix)
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
    assert main["written"] == ["gallery", ".npy", "query"]
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
