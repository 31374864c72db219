"""What a model is made of: configurations and files as layers, mixers and tensors."""
