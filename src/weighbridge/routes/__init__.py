"""Edge or cloud: policy, privacy, difficulty, confidence, money, and the router that follows them in that order."""
