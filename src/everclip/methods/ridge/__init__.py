"""Ridge regression on frozen features, in closed form: the heads of the method `rail`."""
