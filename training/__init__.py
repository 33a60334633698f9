"""One training run: augmentation, frame cache, step, losses, optimizers, recipes, processes, plots."""
