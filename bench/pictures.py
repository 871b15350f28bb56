"""One look for all plots, PNG and SVG."""

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def figure(title: str, panels: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side."""
    mpl.use("Agg")
    # Fixed ids, no date: the same results give the same file.
    mpl.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "none", "svg.hashsalt": "podgraft"})
    drawing, axes = plt.subplots(1, panels, figsize=(5.5 * panels + 1, 4.4), dpi=120, layout="constrained")
    drawing.suptitle(title, fontweight="bold", x=0.01, ha="left")
    return drawing, [axes] if panels == 1 else list(axes)


def save(drawing: Figure, path: Path) -> list[Path]:
    """Finish a figure and write it as PNG and SVG; return both."""
    for axes in drawing.axes:
        axes.grid(visible=True, which="major", color="#e5e9ed", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    files = [path.with_suffix(f".{kind}") for kind in ("png", "svg")]
    for file in files:
        drawing.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(drawing)
    return files
