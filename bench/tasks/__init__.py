"""Tasks and their protocols against peers: `python -m bench.tasks.NAME`, rerank, rerank_http, labels, sparse or oip."""
