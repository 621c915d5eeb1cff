"""From a network to a graph: export to ONNX, fp32 where half precision overflows, int8 and fp8."""
