"""What is kept of a run: its journal on disk, and results of cached steps in memory."""
