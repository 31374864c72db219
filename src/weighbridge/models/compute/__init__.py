"""The forward pass: decoder, linear layers, rotary embedding, kernels."""
