"""The heavy arithmetic on flat vectors: `mixing` folds models into one, `noise` makes and sums directions."""
