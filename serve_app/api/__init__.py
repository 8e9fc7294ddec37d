"""HTTP: dialects that translate to a GenerationRequest, and what stands around them."""
