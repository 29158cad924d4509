"""The files of an experiment: where they lie, what ran, who holds them, and the data it reads."""
