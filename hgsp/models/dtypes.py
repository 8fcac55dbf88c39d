"""Names of the dtypes that weights may have. Importing this file costs no torch."""

DTYPE_NAMES = ("bfloat16", "float16", "float32")
