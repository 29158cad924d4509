"""Videos, shards, windows, latents and the built-in dataset."""
