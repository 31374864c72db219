"""What layers of a general model carry from token to token, beside keys and values."""
