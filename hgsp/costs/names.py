"""Names of costs, phases and clocks, importable without torch."""

#: Cost -> its unit for one group; the values of ``--cost``.
COST_NAMES = {
    "params": "parameters",
    "bytes": "bytes of the weights",
    "macs": "multiply-accumulates per token",
    "kv_bytes": "bytes of the KV cache per token",
    "latency": "seconds, from a table of `hgsp profile`",
}
#: Phases of generation: the whole prompt in one pass, then one token per pass.
PREFILL, DECODE = PHASES = ("prefill", "decode")
#: Clock -> what it counts.
CLOCKS = {"wall": "elapsed time", "cpu": "CPU time of this process, for a CPU that others use too"}
