"""Many replicas behind one door: what each is doing, which one gets the next request, who waits, what is refused."""
