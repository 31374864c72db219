"""Engines that others wrote, started and kept here: commands, processes, a cluster's nodes."""
