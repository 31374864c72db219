"""The pages under docs/reference, made from the code: commands, configuration, HTTP, metrics, variables, flows."""
