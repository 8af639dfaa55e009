"""General utilities without Keras: registries, tables, threads, ranking and plots."""
