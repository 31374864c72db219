"""How models write what they think and whom they call: a small reader a style, one contract for all."""
