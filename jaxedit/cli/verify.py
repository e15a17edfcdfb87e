"""Check an export: does torch compute of it what jaxedit computes of the edited model?

    jaxedit verify exported
    jaxedit verify exported --base=gpt2-xl-directory

Loads the base and the export with transformers, an adapter with peft, in float32 on the CPU, and
compares logits of the facts' prompts and the perplexity. The exit status is 0 where all is equal
within what the export says it has rounded away, 1 where it is not. Needs pip install
'jaxedit[verify]'.
"""

from pathlib import Path

from jaxedit.cli._flags import FLAGS, json_flag, path_flag
from jaxedit.cli._output import print_json, results_console, show_table

ARGUMENTS = ("DIR",)


def define_flags() -> None:
    """Define the flags of this command."""
    path_flag("base", None, "the base's HF directory or hub id, where it is not where it was")
    json_flag()


def main(directory: str) -> int:
    """Compare, print, and return the exit status."""
    from jaxedit.exports.verify import verify_export
    from jaxedit.reports.formatting import format_number

    verified = verify_export(Path(directory), FLAGS.base)
    status = 0 if verified.passed else 1
    if FLAGS.json:
        print_json(
            {
                "format": verified.record.format,
                "dtype": verified.record.options.dtype,
                "base": verified.record.base,
                "compared_with": verified.compared_with,
                "checks": [
                    {**check._asdict(), "passed": check.passed} for check in verified.checks
                ],
                "perplexity": verified.perplexity,
                "passed": verified.passed,
            }
        )
        return status

    # For people: what was compared, a row a comparison, the verdict.
    console = results_console()
    record = verified.record
    console.print(f"{record.format} of {record.base} in {record.options.dtype}")
    console.print(f"compared with {verified.compared_with}\n")
    rows = [
        [check.name, f"{check.found:.2g}", f"{check.allowed:.2g}", "yes" if check.passed else "NO"]
        for check in verified.checks
    ]
    styles = [None if check.passed else "bold red" for check in verified.checks]
    show_table(["difference of", "found", "allowed", "passed"], rows, ("difference of",), styles)
    if verified.perplexity is not None:
        theirs, ours = map(format_number, verified.perplexity)
        console.print(f"\nperplexity {theirs} in torch, {ours} here")
    verdict = "is the edited model" if verified.passed else "is NOT the edited model"
    console.print(f"\n{directory} {verdict}")
    return status
