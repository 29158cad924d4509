"""What runs on Ray: joining a cluster, trainings under TorchTrainer, encoding and conversion."""
