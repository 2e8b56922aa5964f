"""Exact ranking metrics in numpy."""
