"""KV blocks: who holds them, which prefixes they spell, and the tables that kernels read."""
