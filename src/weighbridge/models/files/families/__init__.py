"""What families of models have of their own, whichever file they came from."""
