"""An export checked in Python, and your own rule beside the verdict."""

from __future__ import annotations

from _places import places

from hetero.progress import Reporter
from hetero.stages.checking import check
from hetero.stages.running import CheckOptions

here = places()
report = check(
    here.query,
    here.gallery,
    here.images,
    here.output / "check",
    CheckOptions(thorough="quick"),  # devices=("local", "ssh:pi@garage"), limits=Path("mine.toml")
    reporter=Reporter(quiet=True),
)
print(f"verdict: {report.verdict}")

# Whatever is in the report can be asked for, and a rule of your own held to it.
for found in report.measurements:
    if found.name in ("recall_at_1_lost", "cosine_worst", "latency_p50"):
        print(f"{found.name} {found.format} {found.precision}: {found.value:.4g} {found.unit}")
cosines = [m.value for m in report.measurements if m.name == "cosine_worst"]
assert cosines, "no file was run"
assert min(cosines) > 0.99, "a picture's vector moved"
print(f"the page for people: {here.output / 'check' / 'report.html'}")
