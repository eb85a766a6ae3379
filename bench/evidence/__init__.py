"""Which recipe makes the students of a family better than alone: arms on a subset of CIFAR-100, over seeds.

    python -m bench.evidence --dataset cifar100 --data-dir D --out runs/evidence [--arms paper wider] [--seeds 0 1]
    python -m bench.evidence --dataset cifar100 --data-dir D --out runs/evidence --status

`arms` lists what is compared and why, `subset` cuts the images, `command` trains what is not finished and writes the
results after each run. A new arm is an entry in `arms.ARMS`.
"""
