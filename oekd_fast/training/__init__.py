"""Training steps: one step of a family, eager or captured, and the evaluation of a split.

`engine.Engine` is the entry point; `prepare.prepare_family` comes before it. It combines the parts that a step changes
(`stateful`), the losses and their gradients (`backward`, `distillation`), and the capture of a step (`graph_capture`).
"""
