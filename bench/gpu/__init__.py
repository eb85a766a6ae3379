"""Everything that needs a GPU in one run: the tests, a device copy, the losses, plans of the kernels, training steps.

`command` runs the sections one after the other and keeps the report on disk. `runner` measures the cases of a section
(`copy`, `loss`, `sweep`, `feature`, `step`) in processes of their own; each of these modules has `keys(quick)`, the
names of its cases, and `measure(key, emit, deadline, quick)`. `compile` fills the compilers' caches beforehand, `tests`
runs the tests, `report` derives figures from a report and prints it.
"""
