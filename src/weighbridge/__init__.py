"""Weighbridge: LLM serving that weighs each request once, in tokens, and decides by that weight."""

__version__ = "0.1.0"
