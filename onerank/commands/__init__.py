"""Commands that are only part of the front door: training without TFX."""
