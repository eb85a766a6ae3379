"""Families of any network: a module is copied at several widths and cut into a base and blocks.

- `scaling_errors`: the error of a network that cannot be scaled.
"""
