"""The commands about trust: keygen, sign, verify."""

from pathlib import Path
from typing import Annotated

import typer

from podgraft_bundle import trust
from podgraft_bundle.bundle import Bundle, read_bundle, save_bundle
from podgraft_cli.authoring import Json, out, print_json

TrustedKeys = Annotated[
    list[Path] | None,
    typer.Option("--trusted-key", help="A public key (PEM) whose signature is enough; may be repeated."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("keygen")(keygen)
    app.command("sign")(sign)
    app.command("verify")(verify)


def keygen(
    name: Annotated[str, typer.Option("--output", "-o", help="Path without ending; .key and .pub are added.")],
    *,
    json: Json = False,
) -> None:
    """Make an ed25519 key: NAME.key signs and stays secret (mode 0600), NAME.pub goes into the chart's trust.keys.

    Files that are there are never overwritten. The key has no passphrase: keep it where only the signer can read it.
    """
    private, public = Path(f"{name}.key"), Path(f"{name}.pub")
    key = trust.write_key_pair(private, public)
    if json:
        print_json({"key": key, "private": str(private), "public": str(public)})
        return
    out.print(f"key {key}\n  {private} signs bundles: keep it secret\n  {public} is for those who trust it")


def sign(
    bundle: Path,
    key: Annotated[Path, typer.Option("--key", help="The private key (PEM), as keygen makes it.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here; default: in place.")] = None,
    *,
    json: Json = False,
) -> None:
    """Sign a bundle. Its digest stays the same; signatures of other keys stay, an older one of this key is replaced."""
    secret = trust.read_private_key(key)
    signed = trust.sign(read_bundle(bundle), secret)
    target = output or bundle
    save_bundle(signed, target)
    name = trust.key_id(secret.public_key())
    if json:
        print_json({"bundle": str(target), "digest": signed.digest, "key": name, "signatures": len(signed.signatures)})
        return
    out.print(f"signed {target} by key {name}", soft_wrap=True, markup=False)


def verify(bundle: Path, trusted_key: TrustedKeys = None, *, json: Json = False) -> None:
    """Say whether a bundle is signed by one of the trusted keys; ends with 3 and the reason when it is not."""
    if not trusted_key:
        raise typer.BadParameter("name at least one --trusted-key: without one nothing can be trusted")
    content = read_bundle(bundle)
    keys = check(content, trusted_key)
    if json:
        print_json({"bundle": str(bundle), "digest": content.digest, "trusted": list(keys)})
        return
    out.print(f"verified {content.digest}, signed by {', '.join(keys)}", soft_wrap=True, markup=False)


def check(bundle: Bundle, trusted: list[Path]) -> tuple[str, ...]:
    """Return the trusted keys that signed; raises Refusal as Trust.check and read_public_key do."""
    return trust.Trust(tuple(trust.read_public_key(path) for path in trusted)).check(bundle)
