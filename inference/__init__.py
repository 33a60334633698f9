"""From a weight file to labels: loading, engines, export, the label head, the predictor."""
