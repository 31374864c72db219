"""What a refusal of a model says: its name, the reason, and the way out."""

from __future__ import annotations

from weighbridge.errors import UnsupportedModel
from weighbridge.models.files.fields import shown

WAY_OUT = (
    "Serve it with another engine (vLLM, SGLang, llama-server) and put that behind the gateway: name its url under "
    "`replicas` in weighbridge.yaml, then `weighbridge serve --config weighbridge.yaml`"
)


def refused(kind: object, reason: str) -> UnsupportedModel:
    """Return the error for a model of this type."""
    return UnsupportedModel(
        f"model type {shown(kind)} cannot be served here: {reason.rstrip('.')}. {WAY_OUT}"
    )
