"""How stacked weights start."""

from __future__ import annotations

import keras


def glorot_of_one(fan_in: int, fan_out: int) -> keras.initializers.RandomUniform:
    """The glorot limits of one matrix, for a variable that holds a stack of them.

    Keras's own `glorot_uniform` takes the stack for a convolution's window, and starts too small. Each variable needs
    an initializer of its own: one object would draw the same numbers for all.

    Args:
        fan_in: int. The width of one matrix's inputs.
        fan_out: int. The width of one matrix's outputs.

    Returns:
        An initializer: uniform in [-l, l], l = sqrt(6 / (fan_in + fan_out)).
    """
    limit = (6.0 / (fan_in + fan_out)) ** 0.5
    return keras.initializers.RandomUniform(-limit, limit)
