"""Forecasts: of fixed windows, scored; and of what a user brings, with the winner of a search."""
