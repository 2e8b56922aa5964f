"""Heads by name: what `model.head.name` in a spec may say."""

from trainer.heads.base import Head
from trainer.registry import Registry

HEADS: Registry[Head] = Registry("trainer.heads", Head, provided=("tasks",))
