"""Replicas that are found, by DNS and by Kubernetes."""
