"""What clients depend on, point by point, and TLS on both sides of the relay."""
