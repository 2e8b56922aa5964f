"""DIN: target attention over each history (arXiv 1706.06978)."""
