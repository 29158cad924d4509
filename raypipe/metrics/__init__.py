"""What a forecast is scored with."""
