"""The verdict of an engine on a checkpoint, from the forms that the engine reads and their rules."""

from __future__ import annotations

from dataclasses import dataclass

from hgsp.exports.rules import DENSE, Rule
from hgsp.exports.source import ExportSource
from hgsp.models.families import Family


@dataclass(frozen=True)
class Form:
    """A form of the model that an engine reads.

    Args:
        use: a command or call, with ``{folder}`` for the checkpoint, or for its export if there is one.
        checked: versions that ran it here, or the source in which it was read (``source of ...``).
        needs: rules without which the engine refuses the model.
        wants: rules without which it runs with a ``loss``.
        export: target of ``hgsp export`` that writes the form; empty if the checkpoint is the form.
        note: for the reader of a verdict.
        since: major and minor version of the first transformers that reads the form, of families whose classes it has.
        beyond_dense: whether mixtures of experts and linear attention were tried too.
    """

    use: str
    checked: str
    needs: tuple[Rule, ...] = ()
    wants: tuple[Rule, ...] = ()
    loss: str = ""
    export: str = ""
    note: str = ""
    since: tuple[int, int] | None = None
    beyond_dense: bool = False

    @property
    def was_run(self) -> bool:
        """Whether the engine ran the form here; else its source was read."""
        return not self.checked.startswith("source ")

    def note_for(self, family: Family | None = None) -> str:
        """Return the note, with the first transformers that reads the form and, of a family, has its classes."""
        if self.since is None:
            return self.note
        major, minor = self.since if family is None else max(self.since, family.first_version)
        return f"{self.note}, from {major}.{minor} on"


@dataclass(frozen=True)
class Engine:
    """An engine, or an engine with one kind of weights.

    Args:
        packages: distributions that are the engine, or one of which is.
        forms: that it reads, the preferred one first.
        preset: value of ``--shapes_for`` whose results it runs without a loss.
        programs: commands that are the engine where no distribution is installed.
    """

    name: str
    packages: tuple[str, ...]
    forms: tuple[Form, ...]
    preset: str = ""
    programs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A rule that a model violates: how, and the change to the pruning command that keeps it, if any does."""

    violation: str
    change: str


@dataclass(frozen=True)
class Verdict:
    """The verdict of an engine on a model.

    Args:
        form: the first whose needs are met; None if the engine does not run the model.
        findings: with a form, what it wants and lacks; without, the needs that the closest form lacks.
        others: further forms whose needs are met.
        note: of the form, on this model.
    """

    engine: Engine
    form: Form | None
    findings: tuple[Finding, ...]
    others: tuple[Form, ...] = ()
    note: str = ""

    @property
    def status(self) -> str:
        """``runs``, ``export`` if it runs after one, or ``no``."""
        if self.form is None:
            return "no"
        return "export" if self.form.export else "runs"

    @property
    def changes(self) -> tuple[str, ...]:
        """Changes to the pruning command that help; empty if none makes an engine run the model that does not."""
        if self.form is None and not _is_curable(self.findings):
            return ()
        return tuple(dict.fromkeys(finding.change for finding in self.findings if finding.change))


def judge(engine: Engine, source: ExportSource) -> Verdict:
    """Return the verdict of one engine on a checkpoint."""
    lacks = [
        (form, _violations(form.needs if form.beyond_dense else (DENSE, *form.needs), source)) for form in engine.forms
    ]
    met = [form for form, findings in lacks if not findings]
    if met:
        note = met[0].note_for(source.family)
        return Verdict(engine, met[0], _violations(met[0].wants, source), tuple(met[1:]), note)
    closest = min((findings for _, findings in lacks), key=lambda found: (not _is_curable(found), len(found)))
    return Verdict(engine, None, closest)


def _violations(rules: tuple[Rule, ...], source: ExportSource) -> tuple[Finding, ...]:
    found = ((rule.violation(source), rule.change) for rule in rules)
    return tuple(Finding(violation, change) for violation, change in found if violation is not None)


def _is_curable(findings: tuple[Finding, ...]) -> bool:
    return all(finding.change for finding in findings)
