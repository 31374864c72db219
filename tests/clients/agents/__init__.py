"""Coding agents as they come, each with one real task, against a replica that plays the model."""
