"""Structured attention: the kernels, and who may attend to whom."""
