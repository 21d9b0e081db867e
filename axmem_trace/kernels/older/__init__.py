"""What only older releases of the libraries do, for runs that were measured with them."""
