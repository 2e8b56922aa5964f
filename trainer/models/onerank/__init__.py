"""OneRank: one Transformer with a private channel per task (arXiv 2606.16838)."""
