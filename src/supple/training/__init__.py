"""Training steps for many networks at once: the table of methods, the optimizers, and the learner that joins them."""
