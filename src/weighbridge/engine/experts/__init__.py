"""What a mixture's routers choose, counted while it serves."""
