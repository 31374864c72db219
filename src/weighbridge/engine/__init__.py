"""One replica: requests in, tokens out, by continuous batching."""
