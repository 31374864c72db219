"""Memory, speed and money of a deployment, worked out before anything is bought or started."""
