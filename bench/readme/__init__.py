"""Tables of README.md and docs/, generated from bench/results.

`tables` lists every table with the page it belongs to and writes the pages. `accuracy`, `loss` and `steps` turn result
files into tables of trained families, of the loss, and of training steps. `training` records a finished run as a
result file.
"""
