"""The neural SDE: the path it is trained on, its losses, its dynamics, and how it is integrated."""
