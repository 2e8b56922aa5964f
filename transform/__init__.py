"""What the data is: the ranking spec, request examples, and the preprocessing derived from them."""
