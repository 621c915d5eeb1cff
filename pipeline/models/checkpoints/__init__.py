"""Files of weights: diffusers' folders, LoRAs, digests."""
