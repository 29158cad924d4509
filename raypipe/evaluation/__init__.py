"""The combinations of what the stages handed on: scored, chosen on validation, tested once."""
