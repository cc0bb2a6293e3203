"""Fine-tuning and evaluation of the classifiers that the deployments serve."""
