"""From a network to an engine to a runner; knows nothing of video."""
