"""Evaluation of a search: combinations of its finalists are scored, one is chosen on validation and tested once."""
