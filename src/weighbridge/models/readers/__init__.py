"""Models that read a text as a whole and write none: they turn it into a vector, or into scores of labels."""
