"""The image store: finished images, in a folder or a bucket."""
