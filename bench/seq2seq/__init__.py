"""Encoder-decoders: answers per second beside peers (`python -m bench.seq2seq`)."""
