"""Decisions: questions about an input, answered with the probabilities of their labels."""
