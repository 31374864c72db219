"""Load generation against any OpenAI-compatible server, and what came back."""
