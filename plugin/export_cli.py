"""``flawline host export``: what inspectors said, as a file to carry to the engineer's desk (after hop 12)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contract.errors import ConfigError

HELP = """Write what inspectors said into a file, for `flawline calibrate thresholds BUNDLE --from-verdicts file:FILE`.

JSON lines: every part that inspectors were to judge (flagged ones, and passed ones drawn for the audit), its score,
what judged it, what an inspector said, and the probability with which it was shown. Pictures are not in it. Works
whether or not the host runs; a running one gives the same at /api/export/verdicts.

\b
Example:
  flawline host export host.toml verdicts.jsonl
"""


def export(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="host.toml", show_default=False)],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="file to write; it must not exist", show_default=False)],
) -> None:
    """Read the store page by page."""
    from contract.verdicts import MAX_PAGE
    from plugin.database import place_of, shown_as, upgraded
    from plugin.queries import Reader
    from plugin.settings import load_settings

    settings = load_settings(config)
    store = place_of(settings.state_dir, settings.store.url, settings.store.password_file)
    if isinstance(store, Path) and not store.is_file():
        raise ConfigError(f"{store}: there is no store; a host writes it: flawline host run {config}")
    reader, shown, judged, after = Reader(store), 0, 0, 0
    try:
        if not upgraded(store):
            raise ConfigError(
                f"{shown_as(store)}: written by an older Flawline; start the host once: flawline host run {config}"
            )
        with file.open("x", encoding="utf-8") as output:
            more = True
            while more:
                page = reader.verdicts(after, MAX_PAGE)
                output.write(page.model_dump_json(exclude_none=True) + "\n")
                shown += len(page.parts)
                judged += sum(part.judged is not None for part in page.parts)
                more, after = page.next is not None, page.next or 0
    except FileExistsError as error:
        raise ConfigError(f"{file}: exists already; nothing was written") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror or error})") from error
    finally:
        reader.close()
    typer.echo(f"Wrote {shown} part(s) that inspectors were to judge, {judged} of them judged, to {file}")
