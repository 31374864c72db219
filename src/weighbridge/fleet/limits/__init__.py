"""What a tenant may use: tokens, requests and money, here and shared through Redis."""
