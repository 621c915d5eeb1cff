"""I2VGen-XL."""
