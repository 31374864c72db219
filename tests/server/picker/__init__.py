"""The endpoint picker, spoken to as Envoy speaks to it, and by a real Envoy."""
