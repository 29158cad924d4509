"""The networks: flow, denoiser and diffusion with their common backbone, and the autoencoders."""
