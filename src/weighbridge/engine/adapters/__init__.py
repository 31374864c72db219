"""Adapters over the model of one engine: room for them, their names, and their coming and going."""
