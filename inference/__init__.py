"""From a weight file to labels: loading, engines, precision, the exact label head, the predictor."""
