"""weighbridge.yaml as typed settings; every complaint points at a line."""
