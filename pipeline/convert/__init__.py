"""From the single files that models are published in to the folders that the pack opens."""
