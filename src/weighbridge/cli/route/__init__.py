"""`weighbridge route`: train, evaluate, calibrate, serve and explain edge/cloud routes."""
