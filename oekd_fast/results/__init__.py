"""Results of runs as Python objects, for scripts and notebooks.

`train_result` holds what `oekd_fast.train` returns, with its students from `trained_student`, and `html` shows it in a
notebook. A result uses the package as a user does: it picks students, writes reports and loads weights.
"""
