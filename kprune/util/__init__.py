"""What any Python package needs: registries, tables, threads, ranking, plots; nothing from Keras."""
