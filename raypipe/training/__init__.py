"""Training of a single network: training loop, losses on batches, and logs. Independent of Ray."""
