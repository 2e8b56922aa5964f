"""Benchmarks: what the package reaches beside its rivals, measured on this machine."""
