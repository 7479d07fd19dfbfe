"""`piat study`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from piat_hub.cli.flags import Parser, add_fields, with_flags
from piat_hub.cli.signals import Interrupted, noting_signals
from piat_hub.config import Broken, InputError, StudyOptions, TrainConfig, lookup, recipes

if TYPE_CHECKING:
    from piat_hub.study.sweep import Done, Member


def study(argv: Sequence[str], prog: str) -> None:
    """`piat study NAME [RECIPE]`: one of the paper's comparisons as a sweep, with a table at its end."""
    from piat_hub.study import studies

    description = "\n".join(f"  {n:12} {(f.__doc__ or '').splitlines()[0]}" for n, f in studies.STUDIES.items())
    parser = Parser(
        prog=prog,
        usage=f"{prog} NAME [RECIPE] [flags]",
        description=f"Studies:\n{description}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if len(argv) > 1 and argv[0].startswith("-") and not {"-h", "--help"} & set(argv):
        raise InputError(f"NAME and RECIPE come first: {prog} NAME [RECIPE] {argv[0]} …")
    parser.add_argument("name", metavar="NAME", help="a study")
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="digits, or for a table the paper's, unless named")
    add_fields(parser.add_argument_group("the sweep"), StudyOptions())
    known = studies.default_recipes(argv[0])[0] if argv and argv[0] in studies.STUDIES else "digits"
    named = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else known
    shared = parser.add_argument_group(f"what all its members share (defaults of {named})")
    add_fields(shared, recipes.get(named))
    given = vars(parser.parse_all(argv))
    name, options = given["name"], with_flags(StudyOptions(), given)
    lookup("study", name, studies.STUDIES)
    recipe = given.pop("recipe")
    chosen = [recipe] if recipe else studies.default_recipes(name)
    attacks = options.attacks or studies.default_attacks(name)
    bases = [_base(recipes.get(r), given) for r in chosen]

    from piat_hub.study.sweep import members_of, output_directory
    from piat_hub.study.table import table_rows, write_table

    members = members_of(name, bases, attacks, options)
    failed = _run_sweep(name, members, attacks, options)
    rows = table_rows(name, members, attacks, failed)
    table = write_table(output_directory(bases, options), name, rows, attacks, failed)
    print(f"\n{table.read_text(encoding='utf-8')}\ntable    {table}\nrows     {table.with_suffix('.json')}")


def _base(recipe: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """A recipe with the flags that all members share; another method does not keep the fields of the recipe's own."""
    other = given.get("method", recipe.method) != recipe.method
    return with_flags(dataclasses.replace(recipe, method_args={}) if other else recipe, given)


def _run_sweep(name: str, members: Sequence[Member], attacks: Sequence[str], options: StudyOptions) -> list[Done]:
    """Run a sweep with a bar of its epochs; returns the members that failed. Raises Broken if all did."""
    from tqdm import tqdm

    from piat_hub.study.sweep import Busy, Done, run_members

    total, failed = sum(member.config.epochs for member in members), list[Done]()
    events = run_members(members, attacks, options)
    with tqdm(total=total, unit="epoch", desc=name, disable=None) as bar, noting_signals() as noted:
        bar.update(sum(member.epochs for member in members))
        with contextlib.closing(events):
            for turn, done in enumerate(events):
                if noted:
                    events.close()
                    raise Interrupted("every member is saved")
                if isinstance(done, Busy):
                    bar.write(
                        f"{done.member.directory}: another process is at work on it; its turn comes when that ends"
                    )
                elif done and done.failed:
                    failed.append(done)
                    bar.write(f"{done.member.directory} failed: {done.failed} (all of it: {done.member.log})")
                elif done:
                    bar.write(f"{done.member.directory} is done")
                if turn % 10 == 0:
                    bar.update(sum(member.epochs for member in members) - bar.n)
        bar.update(total - bar.n)
    if len(failed) == len(members):
        raise Broken(f"every member of the study failed; see {members[0].log}")
    return failed
