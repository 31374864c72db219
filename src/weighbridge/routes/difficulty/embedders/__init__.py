"""Where vectors beside the text come from: a sentence embedding, the state of an engine."""
