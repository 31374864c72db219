"""Models known by name, and how their files get onto this disk."""
