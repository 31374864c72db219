"""Bytes: weights, KV cache, activations, and how each engine lays them out."""
