"""Replay of recorded workloads in virtual time."""
