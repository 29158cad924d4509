"""Helpers for all other packages: files, devices, errors, seeds and terminal output. Imports none of them."""
