"""Inference: from a weight file to labels. Loading, engines, precision, the exact label head, the predictor."""
