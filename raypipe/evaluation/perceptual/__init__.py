"""Scores of frames and clips on the features of networks: EfficientNet-Lite0, I3D (FVD), LPIPS, V-JEPA (JEDi)."""
