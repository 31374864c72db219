"""Models: their files, their text, their arithmetic, their experts."""
