"""Making a classifier from pictures."""
