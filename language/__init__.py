"""The LLM step (eq. 6): which words of a prompt describe a tag, and how likely the tag is."""
