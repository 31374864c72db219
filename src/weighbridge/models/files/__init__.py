"""Checkpoints on disk: GGUF and safetensors, their configurations, the catalogue and the store."""
