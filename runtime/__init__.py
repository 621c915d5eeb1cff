"""Where pipeline and engines meet without ComfyUI: the whole job, for nodes, demo, benchmarks and tests."""
