"""Mixtures of experts: layers, loaders, the expert cache."""
