"""Picture networks in ONNX files: what a stranger's file wants and gives, and frames through it."""
