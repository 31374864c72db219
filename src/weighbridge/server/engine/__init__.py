"""The HTTP endpoints over one engine."""
