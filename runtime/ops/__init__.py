"""The `padless::` ops: definition, shape function and reference implementation, one file per op.

Importing a file registers its op with torch; `runtime.backends` holds the implementations that engines use.
"""
