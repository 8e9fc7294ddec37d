"""Images: decoding clients' pictures, preparing them for the stages, encoding results."""
