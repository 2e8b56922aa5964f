"""What feature types do with tensors; it imports TensorFlow, so types import it in the methods that need it."""
