"""Helpers without a place of their own: safe reads and writes of files (`files`) and of JSON (`checked_json`), names
from data in output (`text`), tables on a console (`tables`), a description of the machine (`machine`), the mean and
standard deviation of repeated runs (`spread`), the shares of the channels of a family's students (`width_rule`), checks
of fake implementations of ops (`fake_ops`), and their errors (`op_errors`)."""
