"""Adapters: how a replica is spoken to, started and supervised."""
