"""Clients that nobody here wrote: each in an environment of its own, against doors on a machine with loopback alone."""
