"""What a request for a response holds: its items and its tools, as the API and as a chat have them."""
