"""What all commands of the plugin have in common: options that say which cluster, a connection, an exit code."""

import asyncio
import inspect
import json as jsonlib
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.console import Console

from podgraft_bundle.errors import ExitCode
from podgraft_cli.cluster import Access

# What goes into a pipe or a file is for grep: no line is broken there.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 240)

Work = Callable[..., Awaitable[ExitCode]]
Register = Callable[[Work], Work]


@dataclass(frozen=True)
class Session:
    """What a command works with."""

    access: Access
    json: bool

    def where(self, name: str) -> str:
        """Return a LivePatch as people name it."""
        return f"{self.access.namespace}/{name}"

    def say(self, name: str, word: str) -> None:
        """Print what became of a LivePatch."""
        if self.json:
            out.out(jsonlib.dumps({"livePatch": self.where(name), "result": word}))
        else:
            out.print(f"livepatch {self.where(name)} {word}")


def command(app: typer.Typer, name: str | None = None, *, namespaced: bool = True) -> Register:
    """Return a decorator that makes a coroutine of a Session and its own options a command with the common ones.

    Args:
        app: where it is registered.
        name: of the command; by default that of the coroutine.
        namespaced: whether it has --namespace.
    """

    def register(work: Work) -> Work:
        def run(
            *,
            namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Default: the context's.")] = None,
            context: Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")] = None,
            kubeconfig: Annotated[
                str | None, typer.Option("--kubeconfig", help="Default: KUBECONFIG, ~/.kube/config.")
            ] = None,
            json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
            **own: Any,
        ) -> None:
            async def connected() -> ExitCode:
                access = await Access.open(namespace=namespace, context=context, kubeconfig=kubeconfig)
                async with access.kube:
                    return await work(Session(access, json), **own)

            raise typer.Exit(asyncio.run(connected()))

        mine = list(inspect.signature(work).parameters.values())[1:]
        shared = [one for one in inspect.signature(run).parameters.values() if one.name != "own"]
        if not namespaced:
            shared = [one for one in shared if one.name != "namespace"]
        # Typer reads the options from here.
        run.__signature__ = inspect.Signature(mine + shared)  # type: ignore[attr-defined] # PEP 362 allows it
        run.__annotations__ = {one.name: one.annotation for one in mine + shared}
        run.__doc__ = work.__doc__
        app.command(name=name or work.__name__)(run)
        return work

    return register


def print_json(found: Any) -> None:
    """Print models as the API server writes them, one line."""
    plain = TypeAdapter(Any).dump_python(found, mode="json", by_alias=True, exclude_none=True)
    out.out(jsonlib.dumps(plain))
