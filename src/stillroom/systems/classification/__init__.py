"""Systems that distil classifiers."""
