"""The inside of a measurement for tests of `bench/own_process.py`."""

from __future__ import annotations

from kto_ray.bench.own_process import answer

if __name__ == "__main__":
    answer(lambda asked: {"half": asked["of"] // 2})
