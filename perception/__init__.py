"""What the method looks with: captioner, text encoder, tagger, Grounded-SAM, and the LLM step."""
