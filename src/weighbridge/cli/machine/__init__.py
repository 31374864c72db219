"""Commands about this machine and this installation: what is lost here, a configuration to begin with, completion."""
