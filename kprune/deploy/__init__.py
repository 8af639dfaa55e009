"""Tools that shrink and export a trained sparse model for deployment."""
