"""Structured output: constraints tried, compiled and turned into masks over the vocabulary, off the engine's thread."""
