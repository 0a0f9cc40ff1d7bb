"""A language model behind a server that speaks OpenAI's chat API: requests, keys, and the cache of answers."""
