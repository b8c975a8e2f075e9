"""The per-sample gradients of the scale and shift of LayerNorm and RMSNorm, by reading the input and its gradient once."""
