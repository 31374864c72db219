"""The endpoint picker: Envoy carries requests, and asks here where each one is to go."""
