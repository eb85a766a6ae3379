"""Helpers without a place of their own: atomic writes (`files`), names from data in output (`text`), a description of
the machine (`machine`), and the mean and standard deviation of repeated runs (`spread`)."""
