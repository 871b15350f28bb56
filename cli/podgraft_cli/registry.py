"""The commands for OCI registries: push, pull.

oras takes a third of the time that the whole command line needs to load: it is imported where it is used.
"""
# ruff: noqa: PLC0415

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podgraft_bundle.bundle import decode, encode, read_bundle, save_bundle
from podgraft_cli.authoring import Json, out, print_json
from podgraft_cli.signing import TrustedKeys, check

if TYPE_CHECKING:
    from podgraft_bundle import registry

PlainHttp = Annotated[bool, typer.Option("--plain-http", help="Talk to this registry without TLS.")]
Ca = Annotated[Path | None, typer.Option("--ca", help="PEM file in place of the public certificate authorities.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("push")(push)
    app.command("pull")(pull)


def push(
    bundle: Path,
    target: Annotated[str, typer.Argument(help="registry/repository, with or without :tag.")],
    ca: Ca = None,
    *,
    plain_http: PlainHttp = False,
    json: Json = False,
) -> None:
    """Store a bundle in an OCI registry and print the reference for spec.bundle.oci.

    Credentials are those of `docker login`. Sign first: a signature is part of what is pushed.
    """
    from podgraft_bundle import registry

    content = read_bundle(bundle)
    pushed = registry.push(encode(content), target, _access(target, ca, plain_http=plain_http))
    if json:
        print_json({"reference": str(pushed), "digest": content.digest, "signatures": len(content.signatures)})
        return
    out.print(str(pushed), soft_wrap=True, markup=False)


def pull(
    reference: Annotated[str, typer.Argument(help="registry/repository@sha256:digest, as push printed it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.")],
    ca: Ca = None,
    trusted_key: TrustedKeys = None,
    *,
    plain_http: PlainHttp = False,
    json: Json = False,
) -> None:
    """Fetch a bundle by its digest. With --trusted-key nothing is written unless one of the keys signed it."""
    from podgraft_bundle import registry

    content = decode(registry.pull(reference, _access(reference, ca, plain_http=plain_http)))
    trusted = check(content, trusted_key) if trusted_key else ()
    save_bundle(content, output)
    if json:
        print_json({"bundle": str(output), "digest": content.digest, "trusted": list(trusted)})
        return
    out.print(f"bundle {output}: {content.digest}", soft_wrap=True, markup=False)


def _access(reference: str, ca: Path | None, *, plain_http: bool) -> "registry.Access":
    from podgraft_bundle import registry

    plain = (registry.parse_reference(reference).host,) if plain_http else ()
    named = os.environ.get("DOCKER_CONFIG")
    return registry.Access(plain_http=plain, ca=ca, credentials=(Path(named) / "config.json",) if named else ())
