"""Benchmarks of finished students: what they cost where they are used."""
