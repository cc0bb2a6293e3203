"""Torch modules of each family of models, which serving from converted networks never imports.

Every module that makes a whole model has `build(directory)`, see `deployments.engines.networks`.
"""
