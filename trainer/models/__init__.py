"""Ranking models, one a file; `registry` finds them by the name that the spec gives."""
