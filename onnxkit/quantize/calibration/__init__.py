"""What layers see: samples, runs of the float model over them, ranges and statistics."""
