from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

for name in ("onnx", "onnxruntime", "ai_edge_litert", "coremltools"):
    pytest.importorskip(name, reason="the fuzzer loads every format")

ROOT = Path(__file__).resolve().parent.parent


def test_mutations_follow_from_their_seed_and_change_something():
    from benchmarks.fuzz import mutate

    raw, value = bytes(range(256)), {"a": [1, {"b": "c"}], "d": None}
    for seed in range(50):
        twice = [mutate.of_bytes(raw, raw, random.Random(seed)) for _ in range(2)]
        assert twice[0] == twice[1]
        again = [repr(mutate.of_json(value, random.Random(seed))) for _ in range(2)]
        assert again[0] == again[1]
    assert sum(mutate.of_bytes(raw, raw, random.Random(s)) != raw for s in range(50)) > 45
    assert value == {"a": [1, {"b": "c"}], "d": None}


def test_sound_inputs_of_every_target_load(tmp_path):
    from benchmarks.fuzz import mutate, targets

    class Sound(random.Random):
        """Leaves everything as it is."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mutate, "of_bytes", lambda raw, other, rng: raw)
        patch.setattr(mutate, "of_json", lambda value, rng: value)
        patch.setattr(Sound, "random", lambda self: 0.5)
        # A target whose sound input is refused would test nothing but the refusal.
        for target in targets.targets(tmp_path):
            target.make(Sound(0))[1]()


@pytest.mark.slow
def test_a_short_run_finds_no_fault(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.fuzz", "--count", "200", "--seed", "1"),
            *("--output", tmp_path / "fuzz.json", "--inputs", tmp_path / "inputs"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_crash_a_hang_a_write_outside_and_a_traceback_are_seen(tmp_path, monkeypatch):
    # The workers import this module in place of the targets.
    fake = tmp_path / "sitecustomize.py"
    fake.write_text(
        "import sys, types\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'benchmarks.fuzz.targets':\n"
        "            import importlib.util\n"
        f"            at = {str(tmp_path / 'fake_targets.py')!r}\n"
        "            return importlib.util.spec_from_file_location(name, at)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    (tmp_path / "fake_targets.py").write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "class Target:\n"
        "    def __init__(self, name, load): self.name, self.share, self.load = name, 1, load\n"
        "    def make(self, rng):\n"
        "        first = rng.random() == __import__('random').Random('warm').random()\n"
        "        return b'x', (lambda: None) if first else self.load\n"
        "def one_line(text): return True\n"
        "def big(): return len(bytearray(1 << 36))\n"
        "def targets(home):\n"
        f"    out = Path({str(tmp_path)!r}) / 'outside'\n"
        "    return [Target('crash', os.abort), Target('hang', lambda: time.sleep(600)),\n"
        "            Target('write', lambda: out.write_text('x')), Target('memory', big),\n"
        "            Target('traceback', lambda: 1 / 0), Target('fine', lambda: None)]\n"
    )
    code = (
        "from benchmarks.fuzz import runner\nfrom pathlib import Path\n"
        "if __name__ == '__main__':\n"
        f"    print(runner.run(6, 0, Path({str(tmp_path / 'inputs')!r}), 10.0)['by_target'])\n"
    )
    (tmp_path / "main.py").write_text(code)
    import os

    done = subprocess.run(
        [sys.executable, str(tmp_path / "main.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = {k: next(iter(v)) for k, v in eval(done.stdout.strip().splitlines()[-1]).items()}
    assert found == {
        "crash": "crash: exit -6",
        "hang": "hang",
        "write": "wrote outside",
        "memory": "memory",
        "traceback": "traceback: ZeroDivisionError",
        "fine": "loaded",
    }
