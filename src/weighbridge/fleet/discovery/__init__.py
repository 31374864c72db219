"""Replicas that are found: by a name in DNS, or as the endpoints of a Kubernetes service"""
