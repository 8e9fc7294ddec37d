"""Detection: what stands where in a picture, by small networks of one look."""
