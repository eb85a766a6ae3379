"""Benchmarks: each file measures one op or engine against what a user would otherwise have."""
