"""What the recipes of the text tasks share: data, tokenizers, networks, training, export, traces, reports.

Needs `pip install 'coe-cascade[zoo]'`; nothing here is imported on a device. The tasks themselves are
`coe.zoo.sst2` and `coe.zoo.tfns`.
"""
