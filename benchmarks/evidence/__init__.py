"""Evidence: what was measured on real machines, and the fits of constants that ship; no part of the product."""
