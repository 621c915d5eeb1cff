"""Choice of the engine that runs a network: policy, catalog, builds, runners."""
