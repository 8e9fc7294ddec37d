"""Jobs: their states, the store that holds them, the images they made."""
