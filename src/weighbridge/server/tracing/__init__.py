"""Distributed traces of requests: their spans, made from tickets once they have ended, and sent to a collector."""
