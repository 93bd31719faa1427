"""A trained classifier on its way to where it is used."""
