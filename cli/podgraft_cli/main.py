"""The `podgraft` command: collects the commands of the other modules, turns errors into words and exit codes."""

import sys

import typer

from podgraft_bundle.errors import ExitCode, PodgraftError, Refusal
from podgraft_bundle.protocol import Failed, Refused
from podgraft_cli import authoring, process, registry, signing

app = typer.Typer(
    help="Live patches for running processes: a fixed function, thread by thread, without a restart.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
authoring.register(app)
process.register(app)
signing.register(app)
registry.register(app)


def main() -> None:
    """Run the command line and end with the exit code that says what happened (design section 8)."""
    try:
        app()
    except PodgraftError as error:
        _report(error)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"podgraft: {error}", file=sys.stderr)  # noqa: T201 (the last thing that can be said)
        sys.exit(ExitCode.FAILED)


def _report(error: PodgraftError) -> None:
    """Say what was refused in one line on standard output, what was seen and what would help on standard error."""
    refused = isinstance(error, Refusal)
    if "--json" in sys.argv:
        event = (Refused if refused else Failed)(reason=error.reason, detail=error.detail, hint=error.hint)
        sys.stdout.write(event.model_dump_json() + "\n")
        return
    sys.stdout.write(f"{'refused' if refused else 'failed'}: {error.reason}\n")
    sys.stderr.write(f"{error.detail}\nhint: {error.hint}\n")
