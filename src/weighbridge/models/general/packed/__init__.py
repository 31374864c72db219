"""What of a general model is packed as our own models are: its linear layers and its experts."""
