"""A trained sparse model, written for where it will run."""
