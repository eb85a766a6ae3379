"""Latency of trained students: how long a call takes, on which runtime, with how many threads, for which batch.

`measure_students` in `measure.py` is the entry; it decides what is measured in the time that is available. `timing.py`
times calls in turns, and `result.py` holds what a run stores. A new runtime is a class with the attributes of `Runtime`
in a module of its own, like `eager.py` and `onnx.py`, and a name in `RUNTIMES` of `result.py`.
"""
