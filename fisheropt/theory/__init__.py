"""Pure functions: tensors in, tensors out; usable with no model and no optimizer."""
