"""Jobs: their states, the store that holds them, their images."""
