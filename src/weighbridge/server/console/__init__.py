"""The console: pages of scripts and styles of ours alone, and what they ask of their server."""
