"""What an HTTP request, chunk, error and answer are, how a caller is read, and how bytes come and go."""
