"""What needs a GPU, measured in a few minutes, the most important first: `python -m bench.gpu --out DIR`.

    command     the run: plan, order, and what is printed
    parts       the parts of a run, their order and their times
    runner      starts and watches the process of a part; worker: that process
    record      results on disk; report.json for the tables
    goals       goals and figures; advice: what to look at next; compare: ratios of several runs
    device      what is needed of a GPU; rehearsal: its stand-in in a dry run; profile: kernels of a call
    pack        a folder with what a machine with a GPU may lack

The others are the modules of the parts, whose interface `parts.Part` documents. `command`, `parts`, `runner`, `record`,
`goals`, `advice` and `compare` import nothing of torch.
"""
