"""Where experts go: placement, redundancy, offload, and their simulation."""
