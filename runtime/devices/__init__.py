"""One clip over several devices: which of them share it, and who computes what."""
