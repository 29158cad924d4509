"""From videos to shards: what is found, how it is divided, and the work, which can be resumed."""
