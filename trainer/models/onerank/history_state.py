"""What OneRank's blocks keep of a user's history, and how it is named in the user state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class HistoryState(TypedDict, total=False):
    """What one block keeps of the history, so that any candidates can attend to it later.

    It is a dict because Keras traces, saves and differentiates through dicts. All sizes are those of
    `PrivateChannelBlock`.

    Attributes:
        keys: Float [B, H, U, d/H]. The keys of the history's tokens.
        values: Float [B, H, U, d/H]. Their values.
        task_read: Float32 [B, H, K, 2 d/H + 1]. In the first block only: the task tokens are equal for all candidates
            there, so what they attend to in the history is computed once. See `read_before_candidates`.
    """

    keys: Any
    values: Any
    task_read: Any


def pack_states(states: Sequence[HistoryState]) -> dict[str, Any]:
    """Names the states of all blocks as tensors of the user state.

    Args:
        states: sequence of HistoryState. One per block, in their order.

    Returns:
        `keys_0`, `values_0`, `keys_1`, `values_1` and so on, and `task_read` if the first block has it.
    """
    user_state: dict[str, Any] = {}
    for index, state in enumerate(states):
        user_state |= {f"keys_{index}": state["keys"], f"values_{index}": state["values"]}
        if "task_read" in state:
            user_state["task_read"] = state["task_read"]
    return user_state


def unpack_states(user_state: Mapping[str, Any], blocks: int) -> list[HistoryState]:
    """The opposite of `pack_states`.

    Args:
        user_state: dict. The user state; other tensors in it are ignored.
        blocks: int. L, the number of blocks.

    Returns:
        A HistoryState per block.
    """
    states = [
        HistoryState(keys=user_state[f"keys_{index}"], values=user_state[f"values_{index}"]) for index in range(blocks)
    ]
    if "task_read" in user_state:
        states[0]["task_read"] = user_state["task_read"]
    return states
