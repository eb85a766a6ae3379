"""A run from its config to its folder: phases with checkpoints and resume, and everything that is written.

- `run`: trains the phases that `plan` lists, in order, and saves students and summary; `set_up` is what it does first.
- `dry_run`: the plan of a run (`run_plan`, shown by `show_plan`), extrapolated from steps of each phase (`rehearsal`).
- `phase`, `phase_state`, `tasks`: one phase; what it has done, what it trains and what it returns.
- `build`, `device_data`: the family and the data that a phase starts from.
- `checkpoint`, `random_state`, `run_folder`: what is stored, and checks when a run resumes.
- `data_fingerprint`: what a checkpoint knows of its data; `folder_lock`: one process a run folder.
- `progress`, `bars`, `time_left`, `summary`, `console`: what is shown.
- `interrupt`, `host_memory`: requests to stop, and memory of the process.

A new kind of phase is a name and a `PhaseTask` in `plan`.
"""
