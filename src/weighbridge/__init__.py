"""Weighbridge: LLM serving that weighs each request once, in tokens, and decides by that weight."""

import os

__version__ = "0.1.0"

# Read once by torch's OpenMP runtime when it loads. By default its threads spin for milliseconds at every
# barrier; with anything else running on the same cores, each of the hundreds of barriers of an iteration
# then costs a scheduler's time slice, and a step of 10 ms takes a second.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
