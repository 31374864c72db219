"""What makes the prompts of agents alike from one request to the next, where an operator asks for it."""
