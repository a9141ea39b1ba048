"""Published losses that the product does not offer, to compare with: methods by dotted path."""
