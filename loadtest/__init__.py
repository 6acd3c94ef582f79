"""Load tests: a black box over HTTP that knows the server by its URL only and imports nothing of it."""
