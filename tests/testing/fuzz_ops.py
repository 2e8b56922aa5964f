"""Runs random cases of the C++ operations, forward and backward, against the others: `--help` says more."""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "0"

from tests.testing import attention_cases, rows_cases


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first; each has the next (default: 0)")
    arguments = parser.parse_args()
    worst = {"float32": 0.0, "bfloat16": 0.0}
    for seed in range(arguments.seed, arguments.seed + arguments.cases):
        dtype = "bfloat16" if seed % 5 == 4 else "float32"
        for cases in (attention_cases, rows_cases):
            case = cases.random_case(seed, dtype)
            expected = cases.run(*case, "reference")
            for name, actual in cases.run(*case, "fused").items():
                off = attention_cases.difference(actual, expected[name])
                worst[dtype] = max(worst[dtype], off)
                if not off < cases.TOLERANCE[dtype]:
                    raise SystemExit(f"seed {seed}, {dtype}, {cases.__name__}: `{name}` is off by {off:.1e}")
    print(f"{arguments.cases} cases, largest differences: {worst}")


if __name__ == "__main__":
    main()
