"""A type of model judged in a process of its own, with a time limit: what one does to torch or to memory is its own."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.models.general.judged import Verdict, judge
from weighbridge.errors import said

SECONDS = 180.0


def kinds() -> list[str]:
    """Return every type that the installed transformers has a head for text for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def judged_apart(kind: str) -> Verdict:
    """Return the verdict; a process that dies or takes too long is wrong."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(kind, there))
    process.start()
    there.close()
    try:
        verdict: Verdict = here.recv() if here.poll(SECONDS) else Verdict(kind, "wrong", "it took too long")
    except EOFError:
        verdict = Verdict(kind, "wrong", "its process died")
    process.kill()
    process.join()
    return verdict


def _work(kind: str, there: Connection) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with tempfile.TemporaryDirectory() as directory:
        try:
            verdict = judge(kind, Path(directory))
        except Exception as error:  # what is not refused by name is a fault of ours
            verdict = Verdict(kind, "wrong", f"{type(error).__name__}: {said(error)}")
        there.send(verdict)
