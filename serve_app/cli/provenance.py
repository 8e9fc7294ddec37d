"""`darkroom provenance` and `darkroom verify`: certificates for trying things out, and what image files say."""

from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.cli.options import AsJson
from serve_app.cli.output import FAILED, Failure, reporting, say, write_json, write_line

provenance = typer.Typer(no_args_is_help=True, help="How images say that they were generated.")

_WORDS = {
    "trusted": "valid signature, by somebody trusted",
    "valid": "valid signature, by somebody unknown",
    "invalid": "INVALID: changed since it was signed, or never good",
    "elsewhere": "its credentials are at an address, which isn't asked",
}

# of a file whose watermark is looked for
_MOST_PIXELS = 64 << 20

# what is an answer to "is it as it was signed?"
_GOOD = ("trusted", "valid")


@provenance.callback()
def _provenance() -> None:
    """Makes `provenance` a group, though it has one command."""


@provenance.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A folder that doesn't exist yet.")] = Path("darkroom-data/provenance"),
    as_json: AsJson = False,
) -> None:
    """Make a certificate for development and its key. It proves nothing to anybody: not for production."""
    with reporting(as_json):
        from serve_app.provenance.development import development_files

        if folder.exists():
            raise Failure("not_written", f"{folder} exists already: give another folder, or remove it")
        try:
            files = development_files(folder)
        except OSError as error:
            raise Failure("not_written", f"{folder}: {error.strerror}") from None
        if as_json:
            write_json({name: str(getattr(files, name)) for name in ("authority", "certificates", "key")})
        else:
            write_line(f"provenance: {{c2pa: {{development_folder: {folder}}}}}")
            say("The line belongs into args: of the configuration. NOT FOR PRODUCTION: the certificate proves nothing.")


def verify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False)],
    trusted: Annotated[
        Path | None,
        typer.Option(metavar="PEM", exists=True, dir_okay=False, help="Certificates of the authorities to trust."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what image files say of how they were made, and whether that is to be believed.

    Exit code 1 unless every file has a valid signature. Nothing is asked of any service.
    """
    with reporting(as_json):
        from deployments.engine.errors import InvalidRequest
        from serve_app.config.provenance import DWT_DCT_SVD
        from serve_app.provenance.verification import verify as verification_of
        from serve_app.provenance.watermark import watermark_of

        read_watermark = watermark_of(DWT_DCT_SVD).read
        anchors = "" if trusted is None else trusted.read_text()
        documents: list[dict[str, Any]] = []
        good = True
        for file in files:
            try:
                found = verification_of(file.read_bytes(), read_watermark, _MOST_PIXELS, anchors)
            except InvalidRequest as error:
                raise Failure(error.code, f"{file}: {error.message}") from None
            credentials = found.credentials
            good &= credentials is not None and credentials.state in _GOOD
            documents.append({"file": str(file), **found.model_dump(mode="json")})
            if not as_json:
                _write(file, documents[-1])
        if as_json:
            write_json(documents)
    if not good:
        raise typer.Exit(FAILED)


def _write(file: Path, document: dict[str, Any]) -> None:
    credentials = document["credentials"]
    write_line(f"{file}: {'no credentials' if credentials is None else _WORDS[credentials['state']]}")
    if credentials is not None:
        signature = credentials["signature"]
        if signature is not None:
            by_whom = "" if signature["time_trusted"] else " (an authority that isn't trusted)"
            time = f" at {signature['time']}{by_whom}" if signature["time"] else ""
            write_line(f"  signed by {signature['name']}{time}")
        for action in credentials["actions"]:
            kind = (action["digital_source_type"] or "").rpartition("/")[2]
            write_line("  " + " ".join(filter(None, (action["action"], kind, action["software"]))))
        for ingredient in credentials["ingredients"]:
            write_line(f"  {ingredient['relationship']} {ingredient['title']} ({ingredient['state']})")
        for problem in credentials["problems"]:
            write_line(f"  {problem['code']}: {problem['explanation']}")
    if document["watermark"] is not None:
        service_id, job_end = (document["watermark"][name] for name in ("service_id", "job_end"))
        write_line(f"  watermark of service {service_id}, job ...{job_end}")
    if credentials is None and document["digital_source_type"] is not None:
        write_line(f"  says of itself, unsigned: {document['digital_source_type'].rpartition('/')[2]}")
