"""An adversary beside honest load: what it costs the honest, and what it leaves behind."""
