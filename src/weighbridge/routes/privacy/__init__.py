"""Finding what must not leave, replacing it by placeholders, and putting it back."""
