"""The HTTP endpoints over a fleet."""
