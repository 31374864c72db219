"""What a route learns from its own traffic: shadow answers, thresholds, drift."""
