"""A hook of schemathesis: writes down each call by its operation, how it was made, and its status."""

import json
import os

import fill_calls  # noqa: F401  its hooks
import schemathesis

FILE = open(os.environ["CALLS_FILE"], "a", encoding="utf-8")  # noqa: SIM115  it lives as long as the program


@schemathesis.hook
def after_call(context, case, response):
    """`mode`: whether the case was meant to be taken."""
    meta = getattr(case, "meta", None)
    mode = getattr(getattr(meta, "generation", None), "mode", None)
    phase = getattr(getattr(meta, "phase", None), "name", None)
    told = {
        "operation": f"{case.operation.method.upper()} {case.operation.path}",
        "mode": getattr(mode, "value", str(mode)),
        "phase": getattr(phase, "value", str(phase)),
        "status": response.status_code,
    }
    if response.status_code >= 500 or os.environ.get("CALLS_IN_FULL"):
        told |= {
            "body": repr(getattr(case, "body", None))[:1500],
            "said": response.content[:600].decode("utf-8", "replace"),
        }
    FILE.write(json.dumps(told) + "\n")
    FILE.flush()
