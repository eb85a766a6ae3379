"""Benchmarks of the ops and of whole training steps, against what a user would otherwise have.

Packages, each of which imports only those above it:

    measure, gpu_timing, result_file    wall time and device time of calls in turn; the files of results
    stub_cuda  a CUDA device without a GPU, on which nothing is computed
    ops        one op a file: its sizes, inputs and variants; timed in turn, or by pytest-benchmark
    step       a whole training step of a family
    operations device operations of a training step, counted without a GPU
    model      lower bounds by bytes, arithmetic and launches; nothing is run
    gpu        what needs a GPU, the most important first, in a few minutes
    codegen    registers, spills and memory accesses of the compiled kernels; no GPU is needed
    evidence   recipes compared on a subset of CIFAR-100
    readme     the tables of README.md and docs/

Commands: `python -m bench.ops.ensemble_kd` (and the other ops), `bench.stub_cuda bench.ops.ensemble_kd_host`,
`bench.step`, `bench.step.direct_convs`, `bench.step.evaluation`, `bench.step.openmp_waiting`, `bench.step.ranks`,
`bench.operations`, `bench.model.roofline`, `bench.gpu`, `bench.gpu.compare`, `bench.gpu.pack`, `bench.codegen`,
`bench.evidence`, `bench.readme.pictures`, `bench.readme.tables`, `bench.readme.training`.
"""
