"""ONNX graphs as onnx_ir models: semantic regions, lowerings, clean-up passes, loading and saving."""
