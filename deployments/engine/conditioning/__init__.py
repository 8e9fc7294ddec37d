"""Conditioning: what steers a lane besides its text."""
