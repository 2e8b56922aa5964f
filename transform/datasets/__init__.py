"""Data sets that a user could have brought: what they are is known, how they are read is the package's own path."""
