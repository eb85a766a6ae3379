"""Figures of training runs, drawn with matplotlib, which is imported when a figure is drawn.

`curves` has training curves, `sizes` and `latency` have accuracy against the size and the latency of models, and
`reproduction` has the results of a reproduction. `palette` has the colours of students, `plotting` the shared style.

`plotting.png` returns the picture of a figure, and `svg` the part of an HTML page that shows it, with the values that
`hover` puts under the pointer.
"""
