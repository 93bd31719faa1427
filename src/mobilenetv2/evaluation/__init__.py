"""What a classifier is worth."""
