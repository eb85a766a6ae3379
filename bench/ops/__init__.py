"""Benchmarks of single ops: each module holds the sizes, inputs and variants of one op, and times them in turn.

`python -m bench.ops.ensemble_kd` measures all variants of a size interleaved in one process: these are the numbers to
quote, since ratios of separate runs drift. `python -m pytest bench/ops --benchmark-only` runs the same variants by
pytest-benchmark, a group a size, to compare a change with a saved run (`--benchmark-save`, `--benchmark-compare`).
"""
