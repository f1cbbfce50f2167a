"""Readers of what others publish: data sets in their own file formats, and exported models with their settings.

Data sets (`swag`, `imagenet`) become examples, models (`huggingface`, `timm`, `torchvision`) a manifest beside their
file. `python -m recipes.readers FOLDER` writes the manifest of an exported model's folder.
"""
