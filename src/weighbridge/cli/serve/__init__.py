"""Commands that serve: one model, a fleet of them behind a gateway, or a simulated engine."""
