"""Which engine runs a network: policy, catalog, builds, runners."""
