"""Keras 3 layers, one public class per file."""
