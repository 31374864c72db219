"""Learning from labels which prompts need the cloud, and which local answers are right."""
