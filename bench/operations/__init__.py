"""Device operations of a training step, counted without a GPU.

- `count`: the dispatch mode that counts, and the rule for what launches nothing.
- `step`: one step of the engine on the code path of CUDA.
- `command`: `python -m bench.operations`.
"""
