"""What a run writes while it trains: console and log, metrics, TensorBoard, curves, samples."""
