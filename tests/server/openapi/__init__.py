"""The endpoints of a server as tests know them from outside."""
