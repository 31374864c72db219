"""What the gateway costs: latency it adds, chunks it passes, decisions it takes."""
