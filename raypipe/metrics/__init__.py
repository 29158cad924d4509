"""Metrics of forecasts: ensemble scores and image metrics."""
