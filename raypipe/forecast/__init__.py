"""Forecasts with trained components: of fixed windows, to score them, and of the user's own videos."""
