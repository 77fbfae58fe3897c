"""One script a question; results are committed beside them."""
