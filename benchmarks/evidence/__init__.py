"""Evidence, no part of the product: closed forms behind rules, measurements, and the fits of constants that ship."""
