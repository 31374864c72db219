"""Which devices, how many, how fast and for how much."""
