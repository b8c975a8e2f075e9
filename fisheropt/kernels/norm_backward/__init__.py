"""The whole backward of LayerNorm and RMSNorm, with what the noise of their scale and shift is made of."""
