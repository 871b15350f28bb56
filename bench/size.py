"""Does the time to apply a patch depend on the size of the process? Touched memory, four threads."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Options, build, engine, markdown, resident, running
from bench.pictures import figure, save

SIZES_MB, QUICK_SIZES_MB = (100, 1_024, 4_096, 8_192), (100, 400)
SPARE_MB = 2_048
THREADS = 4
REPEATS = 5
SETTLE_S = 0.5


def run(options: Options) -> dict[str, Any]:
    """Measure each size that the machine has room for."""
    program, bundle = build("sleepers", ["work"], options.work)
    runs, skipped = [], []
    for size in QUICK_SIZES_MB if options.quick else SIZES_MB:
        free = _available_mb()
        if free < size + SPARE_MB:
            skipped.append(f"{size:,} MB: only {free:,} MB are available, {size + SPARE_MB:,} are wanted")
        else:
            runs.append(_measure(program, bundle, size, options.seed))
    return {"runs": runs, "skipped": skipped}


def _available_mb() -> int:
    text = Path("/proc/meminfo").read_text()
    return next(int(line.split()[1]) // 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))


def _measure(program: Path, bundle: str, size: int, seed: int) -> dict[str, Any]:
    with running(program, THREADS, size, seed) as child:
        time.sleep(SETTLE_S)
        before = resident(child.pid)
        answers = []
        for turn in range(REPEATS):
            answers.append(engine(child.pid, op="apply", bundle=bundle))
            if turn == 0:
                after = resident(child.pid)
            engine(child.pid, op="revert", name="sleepers")
    return {
        "size_mb": size,
        "rss_mb": before["Rss"] // 1024,
        "apply_s": [answer.of("finalized")[0]["seconds"] for answer in answers],
        "prepare_s": [round(answer.between("inspected", "switched"), 4) for answer in answers],
        "added_kib": {key: after[key] - before[key] for key in after},
    }


def table(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    headings = (
        "resident MB", "apply s (median)", "fastest", "slowest", "inspected to switched ms",
        "Rss + KiB", "Pss + KiB", "Anonymous + KiB",
    )  # fmt: skip
    rows = [
        (
            f"{run_['rss_mb']:,}",
            *(f"{f(run_['apply_s']):.3f}" for f in (np.median, min, max)),
            f"{np.median(run_['prepare_s']) * 1000:.1f}",
            *(run_["added_kib"][key] for key in ("Rss", "Pss", "Anonymous")),
        )
        for run_ in result["runs"]
    ]
    lines = [f"* skipped, {reason}" for reason in result["skipped"]]
    if len(result["runs"]) > 1:
        small, large = result["runs"][0], result["runs"][-1]
        ratio = np.median(large["apply_s"]) / np.median(small["apply_s"])
        lines.append(
            f"* apply at {large['rss_mb']:,} MB over apply at {small['rss_mb']:,} MB: {ratio:.2f}, goal: independent "
            f"of the size; slowest over fastest apply at {small['rss_mb']:,} MB alone: "
            f"{max(small['apply_s']) / min(small['apply_s']):.2f}"
        )
    return markdown(headings, rows) + "\n\n" + "\n".join(lines)


def plot(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the time of each apply against the size."""
    drawing, (axes,) = figure("Size of the process", 1)
    for run_ in result["runs"]:
        axes.plot([run_["rss_mb"]] * len(run_["apply_s"]), run_["apply_s"], "o", color="#4c78a8", alpha=0.5)
    middle = [np.median(run_["apply_s"]) for run_ in result["runs"]]
    axes.plot([run_["rss_mb"] for run_ in result["runs"]], middle, "-", color="#1b2733", label="median")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set(xlabel="resident memory (MB)", ylabel="seconds to apply")
    return save(drawing, folder / "size")
