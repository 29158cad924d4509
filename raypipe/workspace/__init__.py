"""The folder of an experiment: its paths, manifest, lock and data."""
