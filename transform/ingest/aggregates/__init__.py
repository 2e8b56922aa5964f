"""Aggregate features: smoothed rates and counts of keys, as of the day before a request."""
