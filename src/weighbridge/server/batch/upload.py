"""A form with a file in it (`multipart/form-data`), as clients upload it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

#: Parts of a form, bytes of a part's head, and of a field that is no file.
MAX_PARTS, LONGEST_HEAD, LONGEST_FIELD = 64, 8 << 10, 64 << 10

_NAME = re.compile(rb'[;\s]name="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_FILE_NAME = re.compile(rb'[;\s]filename="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)


@dataclass(slots=True)
class UploadForm:
    """What a form says. `file`: its file's name and content."""

    fields: dict[str, str] = field(default_factory=dict)
    file: tuple[str, bytes] | None = None


def boundary_of(content_type: str) -> bytes | None:
    """What stands between the parts of a form; None for what is no form."""
    if not content_type.lower().lstrip().startswith("multipart/form-data"):
        return None
    found = _BOUNDARY.search(content_type)
    return None if found is None else (found[1] or found[2]).encode("latin-1", "replace")


def read_form(body: bytes, boundary: bytes) -> UploadForm:
    """Raises ValueError with a sentence for what is no such form."""
    form = UploadForm()
    for head, content in _parts(body, boundary):
        name = _NAME.search(head)
        if name is None:
            raise ValueError("a part of the form has no name")
        key, file_name = _text(name[1]), _FILE_NAME.search(head)
        if file_name is not None:
            if key != "file" or form.file is not None:
                raise ValueError("the form must have one file, in the field 'file'")
            form.file = (_text(file_name[1]) or "file", content)
        elif len(content) > LONGEST_FIELD:
            raise ValueError(f"the field {key[:80]!r} has more than {LONGEST_FIELD} bytes")
        else:
            form.fields[key] = content.decode("utf-8", "replace")
    return form


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Head and content of each part. The content of a file is copied once."""
    mark = b"--" + boundary
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if at == 1:
        raise ValueError("the body does not have the boundary that its Content-Type names")
    for _ in range(MAX_PARTS):
        at += len(mark)
        if body.startswith(b"--", at):
            return
        if not body.startswith(b"\r\n", at):
            raise ValueError("a boundary of the form is not followed by a line's end")
        # The empty line ends the head; a part without headers begins with it.
        end_of_head = body.find(b"\r\n\r\n", at, at + LONGEST_HEAD)
        end = body.find(b"\r\n" + mark, end_of_head + 2 if end_of_head >= 0 else at)
        if end_of_head < 0 or end < 0:
            raise ValueError("the form ends in the middle of a part")
        yield body[at:end_of_head], body[end_of_head + 4 : end]
        at = end + 2
    raise ValueError(f"the form has more than {MAX_PARTS} parts")


def _text(quoted: bytes) -> str:
    """A name as it was before it was put in quotes."""
    return re.sub(rb"\\(.)", rb"\1", quoted, flags=re.DOTALL).decode("utf-8", "replace")
