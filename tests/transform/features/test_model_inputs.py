"""What a model learns of its inputs, as plain values."""

import json

from tests.testing.random_batches import INPUTS
from transform.features.model_inputs import ModelInputs

SHOWN_AT = ("shown_at_day_sin", "shown_at_day_cos")


def test_model_inputs_survive_json():
    assert ModelInputs.from_config(json.loads(json.dumps(INPUTS.to_config()))) == INPUTS


def test_model_inputs_know_groups_and_tables():
    candidate = ["item", "brand", "tags", "price", "signal", "maker", *SHOWN_AT]
    assert [column.name for column in INPUTS.group("candidate")] == candidate
    assert [column.name for column in INPUTS.group("seen")] == ["item", "brand", "price", *SHOWN_AT, "buy", "share"]
    assert {column.table for column in INPUTS.columns if column.table} == set(INPUTS.rows)
    assert {column.kind: (column.table, column.dim) for column in INPUTS.group("user")} == {
        "id": ("income.bucket", 4),
        "dense": (None, 1),
    }
    assert INPUTS.rows["item"] == 1 + 9 + 1, "missing, the vocabulary, and one id for all else"
