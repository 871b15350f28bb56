"""Latency over time, with the patch marked."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from hack.demo.load import Load
from hack.demo.result import Result

INK, QUIET, PATCH, REVERT = "#1b2733", "#8794a1", "#2a9d8f", "#e9a13b"
SERVERS = ("#4c78a8", "#7a5fa5", "#b5577d", "#54875c")
BIN_SECONDS = 1.0


def draw(result: Result, title: str, folder: Path) -> list[Path]:
    """Write latency.png and latency.svg into a folder; return both."""
    mpl.use("Agg")
    mpl.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "none", "axes.edgecolor": QUIET})
    figure, axes = plt.subplots(figsize=(11, 5.2), dpi=150, layout="constrained")
    zero = result.timeline.apply
    for server, color in zip(result.servers, SERVERS * len(result.servers), strict=False):
        _dots(axes, server.load, zero, color, server.name)
    _lines(axes, [server.load for server in result.servers], zero)
    _mark(axes, result.timeline.apply - zero, result.timeline.applied - zero, PATCH, "patching")
    _mark(axes, result.timeline.delete - zero, result.timeline.reverted - zero, REVERT, "reverting")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlim(result.timeline.start - zero, result.timeline.end - zero)
    axes.set(xlabel="seconds since the patch was asked for", ylabel="latency of a request (ms)")
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=26)
    axes.text(0, 1.025, _subtitle(result), transform=axes.transAxes, color=QUIET, fontsize=9.5)
    axes.grid(visible=True, which="major", color="#e5e9ed", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        loc="outside lower center", frameon=False, fontsize=8.5, ncols=8, markerscale=4,
        columnspacing=1.6, handlelength=1.8, labelcolor=INK,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"latency.{kind}" for kind in ("png", "svg")]
    for file in files:
        figure.savefig(file)
    plt.close(figure)
    return files


def _subtitle(result: Result) -> str:
    return (
        f"{result.counter('requests'):,} requests, {result.counter('errors')} errors, "
        f"{result.counter('reconnects')} reconnects, {result.restarts} restarts; "
        f"{result.threads_migrated} of {result.threads_total} threads migrated, "
        f"none held longer than {result.longest_hold_us:,.0f} µs"
    )


def _dots(axes: Axes, load: Load, zero: float, color: str, name: str) -> None:
    # As a picture inside the SVG: a hundred thousand vector dots would take minutes to show.
    axes.plot(load.due - zero, load.latency, ".", ms=2.2, alpha=0.5, color=color, label=name, rasterized=True, mew=0)


def _lines(axes: Axes, loads: list[Load], zero: float) -> None:
    due = np.concatenate([load.due for load in loads]) - zero
    latency = np.concatenate([load.latency for load in loads])
    bins = np.floor(due / BIN_SECONDS)
    middles, groups = _groups(bins, latency)
    for percentile, style in ((50, "-"), (99, "--")):
        values = [float(np.percentile(group, percentile)) for group in groups]
        label = f"p{percentile} of each second"
        axes.plot(middles, values, style, color=INK, linewidth=1.3, label=label)


def _groups(
    bins: NDArray[np.float64], latency: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    order = np.argsort(bins, kind="stable")
    names, starts = np.unique(bins[order], return_index=True)
    return (names + 0.5) * BIN_SECONDS, np.split(latency[order], starts[1:])


def _mark(axes: Axes, start: float, end: float, color: str, text: str) -> None:
    axes.axvspan(start, end, color=color, alpha=0.16, linewidth=0)
    axes.axvline(start, color=color, linewidth=1)
    axes.axvline(end, color=color, linewidth=1)
    label = f"{text} {end - start:.1f} s"
    place = axes.get_xaxis_transform()
    axes.text(start, 0.012, f" {label}", transform=place, color=color, fontsize=9, fontweight="bold", va="bottom")
