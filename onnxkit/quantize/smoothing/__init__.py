"""Float-equivalent changes of a graph: factors of channels moved from activations to weights, and biases."""
