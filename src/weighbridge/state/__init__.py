"""State: files that outlive a process, the versions of their schemas, and databases that say what is wrong."""
