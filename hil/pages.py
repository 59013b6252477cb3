"""Pages: one HTML file each, complete in itself, made from a template."""

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hil.protocols.errors import InputError, StorageError

TEMPLATES = Path(__file__).parent / "templates"
PAGE_BEGINS = b"<!DOCTYPE html>"


def rendered(name: str, **values: Any) -> str:
    """A template, filled in."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)


def check_place(out: Path) -> None:
    """Raise `InputError` where no page can be, or something else is."""
    folder = out.parent
    if not os.path.isdir(folder):
        raise InputError(f"{out}: there is no folder {folder}: make it, or choose another one")
    if not os.path.lexists(out):
        return
    if not os.path.isfile(out):
        raise InputError(f"{out} is not a file: name a page, such as {out}/report.html")
    try:
        with open(out, "rb") as file:
            begin = file.read(len(PAGE_BEGINS))
    except OSError as error:
        raise StorageError(f"{out} cannot be replaced ({error.strerror}): choose another name") from error
    if begin and begin != PAGE_BEGINS:
        raise InputError(f"{out} exists and is not a report: choose another name")


def store(out: Path, page: str) -> None:
    """The whole page or what was there before, whatever happens; an earlier page is replaced, other files are not.

    Raises InputError for a place where it cannot be, StorageError where it cannot be written.
    """
    check_place(out)
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        try:
            part.write_text(page, "utf-8", "replace")
            os.replace(part, out)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{out} cannot be written ({error.strerror}): check the disk and permissions") from error
