"""What watches over a server: threads that keep everybody waiting, and how many series its metrics may have."""
