"""How the `tokenizers` library is asked: which files take time that grows with a text alone, and what of others."""
