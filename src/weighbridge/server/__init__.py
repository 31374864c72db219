"""HTTP: the OpenAI API, metrics, tickets and the console page over one engine."""
