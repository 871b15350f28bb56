"""What is measured on one fleet: apply, revert by deletion, and an apply with an operator that is killed half-way."""

import contextlib
import signal
from pathlib import Path

from apiserver import api_server
from installed import install

from bench.scale.fleet import Fleet
from bench.scale.meters import Meter, peak_mib, servers
from bench.scale.theatre import Operator, Stage
from hack.tools import step
from podgraft_kube.client import Json

KILL_AT = 0.5


def measure(fleet: Fleet, folder: Path, *, processes: int, revert: bool, restart: bool) -> Json:
    """Run all phases with an API server and etcd of their own; return what each cost.

    Args:
        fleet: how many nodes and pods.
        folder: for everything that is written; logs stay there.
        processes: in how many processes the agents run.
        revert: whether taking the patch back is measured as well.
        restart: whether the operator is killed in a second rollout.
    """
    folder.mkdir(parents=True)
    with api_server(folder) as api:
        install(api)
        stage = Stage(api, fleet, folder)
        with step(f"{fleet.nodes} nodes and {fleet.pods} pods as objects"):
            tokens = stage.build()
        with stage.agents(tokens, processes) as children:
            programs = {"agents": [one.pid for one in children]} | {name: [pid] for name, pid in servers().items()}
            result: Json = {"nodes": fleet.nodes, "pods": fleet.pods} | rollout(stage, programs, revert=revert)
            if restart:
                result["restart"] = restarted(stage, programs)
        result["agents late"] = stage.lateness()
        return result


def rollout(stage: Stage, programs: dict[str, list[int]], *, revert: bool) -> Json:
    """Measure the operator's start, apply and, if asked for, revert; nothing is left of them."""
    with stage.operator() as operator:
        programs = {"operator": [operator.process.pid]} | programs
        with step("the operator starts"), Meter(stage.api, programs).phase() as start:
            stage.wait_for_objects(operator)
        with step("apply"), Meter(stage.api, programs).phase() as apply:
            stage.apply("fix")
            curve = stage.wait_patched("fix")
        stage.check("fix")
        result = {"start": start, "apply": apply | {"curve": curve}} | _memory(operator)
        if revert:
            with step("revert"), Meter(stage.api, programs).phase() as result["revert"]:
                stage.wait_gone("fix")
    if not revert:
        stage.reset("fix")
    return result


def restarted(stage: Stage, programs: dict[str, list[int]]) -> Json:
    """Kill the operator when half of the pods are patched, and start the next one at once."""
    with contextlib.ExitStack() as operators:
        first = operators.enter_context(stage.operator())
        stage.wait_for_objects(first)
        meter = Meter(stage.api, {"operator": [first.process.pid]} | programs)
        with step("apply, and the operator is killed"), meter.phase() as phase:
            stage.apply("again")
            curve = stage.wait_patched("again", KILL_AT)
            meter.ends(first.process.pid)
            first.process.send_signal(signal.SIGKILL)
            second = operators.enter_context(stage.operator())
            meter.programs["operator"] = [second.process.pid]
            rest = stage.wait_patched("again")
        stage.check("again")
        killed = curve[-1][0]
        whole = curve + [(round(killed + seconds, 2), pods) for seconds, pods in rest]
        return phase | {"killed at": killed, "curve": whole} | _memory(second)


def _memory(operator: Operator) -> Json:
    return {"peak MiB": round(peak_mib(operator.process.pid), 1)}
