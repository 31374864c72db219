"""A simulated replica behind real HTTP, on the real clock: what it computes, how it counts tokens, how it fails."""
