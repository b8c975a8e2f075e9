"""The race of optimizers: who runs, on what, how each is tuned, and the tables of the outcome."""
