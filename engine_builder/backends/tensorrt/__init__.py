"""TensorRT and TensorRT-RTX: builder, runner, and what their libraries call things."""
