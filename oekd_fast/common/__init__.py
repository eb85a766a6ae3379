"""Helpers without a place of their own: atomic writes (`files`), a description of the machine (`machine`), and the mean
and standard deviation of repeated runs (`spread`)."""
