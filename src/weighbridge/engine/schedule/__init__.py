"""Which requests run in the next iteration, and with how many tokens: plain Python, time passed in."""
