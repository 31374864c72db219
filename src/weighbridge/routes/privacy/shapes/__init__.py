"""Shapes of values: expressions of linear time, and the words that must or must not stand beside them."""
