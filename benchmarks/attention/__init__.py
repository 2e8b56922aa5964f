"""The kernels of structured attention beside each other and their rivals."""
