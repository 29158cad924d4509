"""The networks: the backbone of flow, denoiser and diffusion, and the autoencoders."""
