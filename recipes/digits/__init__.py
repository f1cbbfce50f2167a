"""Handwritten digits: seven models from 3,000 MNIST digits. `python -m recipes.digits` trains and exports them."""
