"""Requests to come: traces, synthetic mixes, arrivals and lengths; and how well they were served."""
