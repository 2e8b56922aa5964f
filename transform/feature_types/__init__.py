"""The feature types, one file each: all that depends on what a feature's column holds.

Everything else asks a feature and knows no type by name. A new type is a file here: all of them are found. They load
without TensorFlow, which the methods that need it import.
"""

import importlib
import pkgutil

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg):
    importlib.import_module(f"{__name__}.{_module}")
