"""The feature types, one file each: all that depends on what a feature's column holds.

Everything else asks a feature and knows no type by name. A new type is a file here and a line below. The files load
without TensorFlow, which the methods that need it import.
"""

from transform.feature_types import categorical, categorical_set, numeric, time

__all__ = ["categorical", "categorical_set", "numeric", "time"]
