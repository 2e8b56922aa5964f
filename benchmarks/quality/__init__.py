"""What models reach on data."""
