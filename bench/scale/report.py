"""docs/scale.md and its plot from what was recorded; the words about 10,000 nodes stand in page.md, by hand."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.harness import goal, markdown
from bench.pictures import figure, save

TEMPLATE = Path(__file__).with_name("page.md")
MOST_SECONDS, MOST_MIB = 60.0, 256.0
PHASES = {"start": "operator starts", "apply": "apply", "revert": "revert", "restart": "apply, operator killed"}
# Requests that are the measurement's own, or the API server's.
ASIDE = frozenset({"GET livepatches", "POST livepatches", "DELETE livepatches", "POST serviceaccounts/token"})
OTHERS = ("endpoint", "leases", "WATCH", "customresourcedefinitions", "flowcontrol", "prioritylevel", "flowschema")
Results = dict[str, Any]
Phase = dict[str, Any]


def write(results: Results, folder: Path) -> str:
    """Write scale.md and the plot into a folder; return the text."""
    text = page(results)
    (folder / "scale.md").write_text(text)
    plot(results, folder)
    return text


def page(results: Results) -> str:
    """Return the page."""
    machine = [one["machine"] for one in results.values()]
    return TEMPLATE.read_text().format(
        goals="\n".join(goals(results)),
        phases=phases(results),
        requests=requests(results),
        shares=shares(results),
        machine=markdown(["nodes", *machine[0]], [[key, *one["machine"].values()] for key, one in results.items()]),
    )


def goals(results: Results) -> Iterable[str]:
    """Yield a line for each goal, by the largest fleet."""
    largest = list(results.values())[-1]
    nodes = f"{largest['nodes']:,} nodes"
    yield goal(f"{nodes}, apply to done", largest["apply"]["seconds"], MOST_SECONDS, " s")
    peaks = [largest["peak MiB"], *(one["peak MiB"] for one in [largest.get("restart")] if one)]
    yield goal(f"{nodes}, operator's peak memory", max(peaks), MOST_MIB, " MiB")


def measured(results: Results) -> Iterable[tuple[str, str, Phase]]:
    """Yield nodes, phase and what it cost."""
    for nodes, one in results.items():
        yield from ((nodes, name, one[name]) for name in PHASES if name in one)


def phases(results: Results) -> str:
    """Return the table of times and writes."""
    rows = [
        (
            f"{int(nodes):,}", PHASES[name], phase["seconds"], ours(phase).total(),
            f"{ours(phase).total() / phase['seconds']:.0f}", phase["etcd puts"], phase["etcd MiB"],
            results[nodes]["peak MiB"] if name == "apply" else phase.get("peak MiB", ""), phase["load"],
        )
        for nodes, name, phase in measured(results)
    ]  # fmt: skip
    headings = ("nodes", "phase", "s", "requests", "a second", "etcd puts", "etcd MiB", "operator peak MiB", "load")
    return markdown(headings, rows)


def requests(results: Results) -> str:
    """Return the table of requests: a row for each kind, a column for each fleet's apply."""
    kinds = sorted({kind for one in results.values() for kind in ours(one["apply"])})
    rows = [(kind, who(kind), *(ours(one["apply"])[kind] for one in results.values())) for kind in kinds]
    return markdown(("request", "by", *(f"{int(nodes):,} nodes" for nodes in results)), rows)


def shares(results: Results) -> str:
    """Return the table of processor seconds by program."""
    programs = ("operator", "agents", "kube-apiserver", "etcd")
    rows = []
    for nodes, name, phase in measured(results):
        used = phase["cpu seconds"]
        whole = sum(used.values())
        rows.append(
            (f"{int(nodes):,}", PHASES[name], *(f"{used[one]:.1f} ({used[one] / whole:.0%})" for one in programs),
             f"{whole / results[nodes]['machine']['processors']:.0f}", phase["others cpu seconds"])
        )  # fmt: skip
    return markdown(("nodes", "phase", *programs, "alone s", "other processes"), rows)


def plot(results: Results, folder: Path) -> None:
    """Draw how pods get patched in the largest fleet, and how time, memory and requests grow."""
    drawing, (course, growth) = figure("A rollout over simulated nodes", 2)
    largest = list(results.values())[-1]
    for name, label in (("apply", "apply"), ("restart", "operator killed half-way")):
        if name in largest:
            course.plot(*zip(*largest[name]["curve"], strict=True), label=label)
    if "restart" in largest:
        course.axvline(largest["restart"]["killed at"], color="#c0392b", linewidth=0.8, linestyle=":")
    course.set(title=f"{largest['nodes']:,} nodes", xlabel="s", ylabel="pods patched")
    nodes = [one["nodes"] for one in results.values()]
    shown: dict[str, Callable[[Results], float]] = {
        "apply, s": lambda one: float(one["apply"]["seconds"]),
        "operator, CPU s": lambda one: float(one["apply"]["cpu seconds"]["operator"]),
        "API server, CPU s": lambda one: float(one["apply"]["cpu seconds"]["kube-apiserver"]),
        "operator, MiB": lambda one: float(one["peak MiB"]),
        "etcd, MiB written": lambda one: float(one["apply"]["etcd MiB"]),
    }
    for label, value in shown.items():
        growth.loglog(nodes, [value(one) for one in results.values()], marker="o", label=label)
    growth.set(title="how it grows", xlabel="nodes (10 pods each)")
    growth.set_xticks(nodes, [f"{one:,}" for one in nodes])
    growth.minorticks_off()
    (folder / "scale").mkdir(exist_ok=True)
    save(drawing, folder / "scale" / "scale")


def ours(phase: Phase) -> Counter[str]:
    """Return the requests of operator and agents."""
    made = phase["requests"].items()
    return Counter({kind: n for kind, n in made if kind not in ASIDE and not any(word in kind for word in OTHERS)})


def who(kind: str) -> str:
    """Return who makes a kind of request; bundles are read by both."""
    if kind.startswith("GET configmaps"):
        return "agents, operator"
    return "agents" if kind.startswith("PATCH nodepatches/status") else "operator"
