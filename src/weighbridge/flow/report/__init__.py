"""What happened in a run, and how it is shown: in words, as a timeline, as JSON."""
