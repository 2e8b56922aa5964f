"""Losses by name: what `model.loss.name` in a spec may say."""

from trainer.losses.base import RankingLoss
from trainer.registry import Registry

LOSSES: Registry[RankingLoss] = Registry("trainer.losses", RankingLoss, provided=("tasks",))
