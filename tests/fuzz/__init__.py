"""A fuzz target for each parser of what comes from outside; `make fuzz` runs them guided by coverage."""
