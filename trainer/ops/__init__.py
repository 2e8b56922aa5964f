"""Functions of tensors that more than one layer needs."""
