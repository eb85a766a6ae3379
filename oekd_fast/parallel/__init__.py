"""Parallel execution of the students of a family. Entry point: `executor.make_executor`.

executor: the executors, on host threads or device streams; threads: division of the intra-op threads and starting
order on the CPU; rng: the order of random draws; interpreter_exit: calls in daemon threads while the interpreter exits.
"""
