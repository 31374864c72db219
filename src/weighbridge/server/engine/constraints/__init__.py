"""What may come in an answer: schemas and grammars, from what a request says to a guide of the engine."""
