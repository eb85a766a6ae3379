"""Reproduction of a recipe over several seeds: ``python -m oekd_fast.reproduce``.

`seeds` trains the runs that are not finished, `ablations` trains the family with other options, and `timing` measures
epochs. `statistics` averages over seeds, and `results` writes results.json, results.md (`markdown`) and results.png.
"""
