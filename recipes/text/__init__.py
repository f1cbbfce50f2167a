"""What the recipes of the text tasks share: data, tokenizers, networks, training, export, traces, reports.

Needs `pip install 'coe-cascade[recipes]'`; nothing here is imported on a device. The tasks themselves are
`recipes.sst2` and `recipes.tfns`.
"""
