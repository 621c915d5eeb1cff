"""From noise to latents: schedulers and the loop over them."""
