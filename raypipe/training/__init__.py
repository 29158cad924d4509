"""The training of one network: the loop, the losses on batches, and its record. No Ray in here."""
