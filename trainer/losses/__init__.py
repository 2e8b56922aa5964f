"""Losses over request batches with missing labels."""
