"""Facts of public data sets: class names, templates, sizes, class orders, usual layout, where people get them."""
