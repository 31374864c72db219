"""Putting values back where placeholders came back: however a model writes them, escaped for where they stand."""
