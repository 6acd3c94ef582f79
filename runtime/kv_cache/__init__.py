"""Keys and values of past tokens, in blocks: who owns which (`blocks`), and the memory they lie in (`layout`)."""
