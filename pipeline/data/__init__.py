"""Data for calibration and validation: where it comes from, and how it is cut into batches."""
