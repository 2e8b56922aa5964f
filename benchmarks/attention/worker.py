"""A process that runs kernels of attention when `compare_kernels` asks for it; see `benchmarks.measure.Worker`.

`tensorflow` measures memory, in a process for each kernel; `torch` runs PyTorch, under an interpreter that has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.attention.shapes import Shape, attention_inputs, visible

Build = Callable[[str, Shape, bool], Callable[[], list[Any]]]
TORCH_KERNELS = ("torch", "torch causal")


class Runner:
    """Runs what a function builds.

    Args:
        build: function. Given a kernel, a shape and whether to go backward, makes the call that is measured.
        seconds: float. What one go takes at the least: short calls are repeated.
    """

    def __init__(self, build: Build, seconds: float = 0.03):
        self._build, self._seconds = build, seconds
        self._calls: dict[str, tuple[Callable[[], list[Any]], int]] = {}

    def prepare(self, kernel: str, shape: Shape, backward: bool) -> None:
        """Builds, and warms up."""
        call = self._build(kernel, shape, backward)
        self._calls[kernel] = call, measure.repeats_for(call, self._seconds)

    def run(self, kernel: str) -> measure.Times:
        """One go."""
        return measure.timed(*self._calls[kernel])

    def results(self, kernel: str) -> list[np.ndarray]:
        """The result and the gradients."""
        return [np.asarray(tensor) for tensor in self._calls[kernel][0]()]

    def clear(self) -> None:
        """Forgets what was prepared, to free its memory."""
        self._calls.clear()

    def memory(self, kernel: str, shape: Shape) -> int:
        """The bytes that the forward pass takes beside inputs and outputs; in a process of its own."""
        call = self._build(kernel, shape, False)
        return measure.extra_memory(lambda: sum(4 * int(np.prod(tensor.shape)) for tensor in call()))


def torch_build(kernel: str, shape: Shape, backward: bool) -> Callable[[], list[Any]]:
    """PyTorch's scaled dot product with the dense mask, or with `is_causal`."""
    import torch

    arrays = {name: torch.from_numpy(array) for name, array in attention_inputs(shape).items()}
    sources = [tensor.requires_grad_(backward) for name, tensor in arrays.items() if name != "grad_out"]
    options: dict[str, Any] = {"is_causal": True}
    if kernel == "torch":
        mask = torch.from_numpy(visible(shape))
        options = {"attn_mask": torch.where(mask, torch.zeros(()), torch.tensor(-torch.inf))}

    def call() -> list[Any]:
        keys, values = arrays["keys"], arrays["values"]
        if shape.prefix:
            keys = torch.cat([arrays["prefix_keys"], keys], dim=2)
            values = torch.cat([arrays["prefix_values"], values], dim=2)
        out = torch.nn.functional.scaled_dot_product_attention(arrays["queries"], keys, values, **options)
        if not backward:
            return [out]
        gradients = torch.autograd.grad(out, sources[: None if shape.prefix else 3], arrays["grad_out"])
        return [out.detach(), *gradients, *map(torch.zeros_like, sources[len(gradients) :])]

    return call


def main() -> None:
    """Serves until there are no more requests."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention.worker", description=__doc__)
    parser.add_argument("library", choices=["tensorflow", "torch"])
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    if arguments.library == "torch":
        import torch

        torch.set_num_threads(arguments.threads)
        runner, facts = Runner(torch_build), {"version": torch.__version__}
    else:
        measure.set_threads(arguments.threads)
        from benchmarks.attention.kernels import build

        runner, facts = Runner(build), {}

    def answer(do: str, kernel: str = "", shape: Any = None, backward: bool = False, to: str = "") -> Any:
        if do == "prepare":
            return runner.prepare(kernel, Shape(*shape), backward)
        if do == "run":
            return astuple(runner.run(kernel))
        if do == "clear":
            return runner.clear()
        if do == "memory":
            return runner.memory(kernel, Shape(*shape))
        return np.savez(to, *runner.results(kernel))

    measure.serve(answer, facts)


if __name__ == "__main__":
    main()
