"""What `python -m oekd_fast.reproduce` does: runs over seeds, their statistics, what they are compared with."""
