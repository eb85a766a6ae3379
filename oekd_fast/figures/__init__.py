"""Figures of training runs, drawn with matplotlib, which is imported when a figure is drawn.

`curves` has training curves, `sizes` has accuracy against model size, and `reproduction` has the results of a
reproduction. `plotting` has the shared style.
"""
