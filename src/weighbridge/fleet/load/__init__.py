"""What is known of a replica's load: its queue, its own report, its prefix cache."""
