"""A fleet under a virtual clock: the engine's scheduler and the fleet's policies, unchanged, without a model."""
