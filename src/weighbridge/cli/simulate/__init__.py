"""`weighbridge simulate`: what it is told, what it runs, and what it prints."""
