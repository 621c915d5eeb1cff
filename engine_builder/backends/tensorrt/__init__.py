"""TensorRT and TensorRT-RTX: builder, runner, and the names in their libraries."""
