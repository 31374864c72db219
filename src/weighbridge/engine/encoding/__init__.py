"""Models that turn texts into vectors, behind the same engine."""
