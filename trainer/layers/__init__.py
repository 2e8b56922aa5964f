"""Keras 3 layers, one public class a file."""
