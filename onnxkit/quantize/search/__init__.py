"""Which layers are quantized and how: sensitivity, limits, allocation, and what is kept of a search."""
