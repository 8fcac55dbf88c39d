"""Names shared by the writers and readers of reports: files, schema versions, roles of models, evaluation stages."""

from __future__ import annotations

PRUNING_REPORT, RECOVERY_REPORT = "pruning_analysis.json", "recovery_analysis.json"
EVALUATION_RESULTS = "results.json"
PRUNING_SCHEMA, RECOVERY_SCHEMA, EVALUATION_SCHEMA = 1, 1, 1

DENSE, PRUNED, RECOVERED = "dense", "pruned", "recovered"
#: Columns of tables, in this order. In an evaluation, ``pruned`` is the model under ``--model_path``, whatever it is.
ROLES = (DENSE, PRUNED, RECOVERED)

#: Perplexities of a report's ``evaluation``: of the model a command was given, and of the one it made.
BEFORE, AFTER = "before", "after"
#: A task of accuracy that averages over zero-shot tasks leave out.
LAMBADA = "lambada"
#: The metric of a perplexity task.
TOKEN_PPL = "token_ppl"
#: Status of one task's result.
DONE, FAILED = "done", "failed"
