"""Any decoder that transformers knows, on our cache, scheduler and sampler: its modules, our attention."""
