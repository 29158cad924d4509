"""Video files, shards, training windows, the latent cache, augmentation and the built-in demo dataset."""
