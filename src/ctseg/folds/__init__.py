"""k-fold training of any bundle, and the networks of its folds as one."""
