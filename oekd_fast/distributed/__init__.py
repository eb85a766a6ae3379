"""Processes that train one run together: how they find each other, and what they exchange.

`rendezvous.joined` starts: it returns the `World` of this process, which is a world of one unless torchrun or another
launcher has set the environment. `world` holds the exchange of small values, `agreement` the checks that all ranks do
the same and errors that all ranks learn of, `vote` a question asked in each step, `buckets` the sum of gradients, and
`norms` BatchNorm over all ranks. A world of one exchanges nothing and needs no process group.
"""
