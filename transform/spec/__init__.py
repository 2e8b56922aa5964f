"""The ranking spec: one YAML file as typed sections. It imports neither Beam nor TensorFlow."""
