"""Breakers, health, retries, hedges."""
