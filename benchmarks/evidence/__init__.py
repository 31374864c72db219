"""Evidence: closed forms behind rules, measurements of real machines, fits of constants that ship; no part of the product."""
