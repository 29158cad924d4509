"""What every other package may use: files, the device, errors, seeds, and what a terminal shows."""
