"""What an operator can set about models that are loaded when somebody asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.knobs import knob


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDemandSettings:
    """Models whose replicas are processes of this machine are loaded on demand, and make room for each other."""

    memory: int | None = knob(
        None, "Bytes for all models together; none: nine tenths of what is free at start.", unit="bytes"
    )
    keep_alive: float | None = knob(
        None,
        "Seconds without a request after which a model is unloaded; none: when another needs its place.",
        min=0.0,
    )
    hold: float = knob(
        0.1,
        "A model that was used stays behind its last request for this many times the seconds that loading it and the "
        "one that wants its place takes.",
        min=0.0,
    )
    turn: float = knob(
        1.0, "A model that has work stays for this many times the same, since it was loaded.", min=0.0
    )
    load_timeout: float = knob(600.0, "Seconds after which a load has failed.", min=0.1)
