"""Heads: what turns a candidate's vector into one logit per task."""
