"""Use of the pipeline with engines, without ComfyUI: the whole job, for nodes, demo, benchmarks and tests."""
