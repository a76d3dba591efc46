"""The method `cll-clip`: one language after the other, by rows of the token embedding."""
