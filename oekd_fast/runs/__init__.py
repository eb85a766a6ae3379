"""Runs: whole trainings with checkpoints, resume, and a run folder that holds all results.

`run.train` is the entry point. It asks `plan` for the phases of a run and trains each with `phase.Phase`, which builds
a `training.engine.Engine`, writes checkpoints and selects the epoch.
"""
