"""What every file that we write carries: the version of its schema, and how older versions become this one.

A file without a version is version 0: that is what Weighbridge 0.1.0 wrote. A newer Weighbridge reads what an older
one wrote, through `migrations`; an older one refuses what a newer one wrote, in one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from weighbridge.errors import BadInput

Content = TypeVar("Content")

#: The key under which documents and lines of JSON say their version.
VERSION_KEY = "schema"


def unchanged(content: object) -> None:
    """The migration of a file that gained nothing but its version."""


class NewerSchema(BadInput):
    """A file was written by a newer Weighbridge than this one."""


@dataclass(frozen=True, slots=True)
class Schema(Generic[Content]):
    """The schema of one kind of file. `migrations[n]` changes a content of version n into one of version n + 1."""

    name: str  # of the kind, for people
    migrations: Sequence[Callable[[Content], None]]
    oldest: int = field(default=0, kw_only=True)  # the first version that can still be read
    remedy: str = field(default="", kw_only=True)  # what to do about a file that is older

    @property
    def version(self) -> int:
        """The version that this Weighbridge writes."""
        return len(self.migrations)

    def check(self, found: object, where: str) -> int:
        """Return the version that a file says it has. Raises NewerSchema, and BadInput for what is no version."""
        if type(found) is not int or found < 0:
            raise BadInput(
                f"{where} says {found!r:.40} where a {self.name} has its version; restore it from a backup"
            )
        if found > self.version:
            raise NewerSchema(
                f"{where} is a {self.name} of version {found}, written by a newer Weighbridge; this one reads up to "
                f"version {self.version}: upgrade it, or name another file"
            )
        if found < self.oldest:
            raise BadInput(
                f"{where} is a {self.name} of version {found}, which is no longer read; {self.remedy}"
            )
        return found

    def upgrade(self, content: Content, found: object, where: str) -> None:
        """Bring a content of the version `found` to this one. Raises what `check` does."""
        for migrate in self.migrations[self.check(found, where) :]:
            migrate(content)


@dataclass(frozen=True, slots=True)
class DocumentSchema(Schema[dict[str, Any]]):
    """The schema of a JSON object, or of each line of a file of them."""

    key: str = field(default=VERSION_KEY, kw_only=True)

    def stamped(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return the content as it is written, its version first."""
        return {self.key: self.version, **content}

    def read(self, content: dict[str, Any], where: str) -> dict[str, Any]:
        """Return a written content as this version has it, without its version. Raises what `check` does."""
        found = content.pop(self.key, 0)
        self.upgrade(content, found, where)
        return content
