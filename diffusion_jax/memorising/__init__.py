"""How training time, size of the training set and width of the model make a model memorise."""
