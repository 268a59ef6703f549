"""Four small models, trained here from data that ships in packages, on which onnxkit is shown and tested."""
