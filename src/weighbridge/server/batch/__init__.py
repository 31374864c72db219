"""OpenAI's files and batches: requests that come in one file and are answered when nobody else needs the machine."""
