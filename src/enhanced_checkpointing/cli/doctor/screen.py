"""How a diagnosis looks: the settings, what is well in a line each, and at the end, where the eye is, what is not."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.cli.configuration import DEFAULT
from enhanced_checkpointing.cli.doctor.command import Diagnosis
from enhanced_checkpointing.cli.findings import Status
from enhanced_checkpointing.cli.screen import line, plural, print_json, problem, stdout

__all__ = ["print_diagnosis"]


def print_diagnosis(diagnosis: Diagnosis, *, as_json: bool) -> None:
    """Print everything that was found."""
    if as_json:
        print_json(as_object(diagnosis))
    else:
        _print(diagnosis, stdout())


def as_object(diagnosis: Diagnosis) -> dict[str, object]:
    """The diagnosis in plain JSON types."""
    return {
        "status": "failed" if diagnosis.exit_code else "fine",
        "failed": diagnosis.count(Status.FAILED),
        "warnings": diagnosis.count(Status.WARNING),
        "seconds": round(diagnosis.seconds, 3),
        "settings": [
            {"name": each.name, "variable": each.variable, "value": each.value, "source": each.source}
            for each in diagnosis.settings
        ],
        "findings": [finding.as_json() for finding in diagnosis.findings],
    }


def _print(diagnosis: Diagnosis, console: Console) -> None:
    console.print(Text("Settings", style="bold"))
    _print_settings(diagnosis, console)
    console.print()
    quiet = [finding for finding in diagnosis.findings if not finding.is_problem]
    loud = sorted(
        (finding for finding in diagnosis.findings if finding.is_problem),
        key=lambda finding: finding.status is Status.FAILED,
    )
    console.print(Text("Looked at", style="bold"))
    for finding in quiet:
        line(console, finding)
    for finding in loud:
        console.print()
        problem(console, finding)
    console.print()
    console.print(_verdict(diagnosis))


def _print_settings(diagnosis: Diagnosis, console: Console) -> None:
    """Values stay whole, however long: they are there to be copied."""
    names = max(len(each.name) for each in diagnosis.settings)
    for each in diagnosis.settings:
        text = f"{each.name:<{names}}  {each.value:<20}  {each.source}"
        console.print(Text(text, style="dim" if each.source == DEFAULT else ""), soft_wrap=True)


def _verdict(diagnosis: Diagnosis) -> Text:
    wrong, odd = diagnosis.count(Status.FAILED), diagnosis.count(Status.WARNING)
    warned = f"{plural(odd, 'warning')}, " if odd else ""
    seconds = f"({diagnosis.seconds:.1f} s)"
    if wrong:
        return Text(f"{warned}{plural(wrong, 'thing')} to mend {seconds}.", style="bold red")
    well = f"{warned}nothing to mend: an application can start {seconds}."
    return Text(well[:1].upper() + well[1:], style="bold green")
