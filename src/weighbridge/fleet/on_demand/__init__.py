"""More models than memory holds: who is loaded, who makes room, who waits for it."""
