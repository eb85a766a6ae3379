"""Choosing a student of a finished run by budgets of latency, parameters, bytes and accuracy.

`pick_student` in `pick.py` is the entry. `budget.py` holds the limits, `candidates.py` what each student and the
ensemble have, `choose.py` the rules, and `measure.py` measures a finished run on this machine.
"""
