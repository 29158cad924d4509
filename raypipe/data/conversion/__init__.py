"""Conversion of videos to shards: find the clips, assign them to splits, write the shards, resume."""
