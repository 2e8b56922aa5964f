"""Evaluation with TFMA, the gates per task, and the check that a model serves as it was trained."""
