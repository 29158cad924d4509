"""Work that runs on Ray: joining a cluster, training under TorchTrainer, latent encoding and dataset conversion."""
