"""Images: decoding what clients send, preparing it for the stages, and encoding what they answer."""
