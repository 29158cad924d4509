"""The networks: flow, denoiser, diffusion and joint with their backbones, and the autoencoders."""
