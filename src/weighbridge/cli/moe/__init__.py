"""`weighbridge moe`: make, measure, place and offload mixtures of experts."""
