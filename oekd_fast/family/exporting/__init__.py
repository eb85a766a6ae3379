"""Students and families as files for other programs: ONNX (``.onnx``) and programs of torch.export (``.pt2``).

- `export`: `export_network` traces a network, writes a format, runs it and compares it before the file is kept.
- `networks`: the modules that are traced: preprocessing and network, and all students of a family with their ensemble.
- `contents`: what a file takes and returns, and the texts that it holds about the network.
- `onnx_format`, `program_format`: one format each: a traced program as bytes, and bytes as a function that runs them.
- `comparison`: differences of outputs, and which differences are rounding.

A new format is a module like `onnx_format`, and an entry in `FORMATS` of `export`.
"""
