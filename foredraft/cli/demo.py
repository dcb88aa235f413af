"""`foredraft demo`: a summary with its drafts coloured, and what the drafts gain on this machine."""

from __future__ import annotations

import json
from textwrap import shorten

from foredraft.cli import options

# sample texts of the measurement, tokens of a summary, drafted tokens a step, timed passes
TEXTS, TOKENS, K, PASSES = 6, 64, 5, 3


def demo(as_json: options.Json = False) -> None:
    """Summarise a sample text, drafts coloured, then measure what the drafts gain. About a minute on first use."""
    import foredraft
    from foredraft.bench.harness.cases import sample_texts
    from foredraft.cli.output import announce_compilation, console, progress

    announce_compilation()
    model = foredraft.load(drafter="lookup+ngram")
    texts = sample_texts()[:TEXTS]
    # one uncounted pass of each method first: it compiles and fills the caches
    with progress() as bar:
        task = bar.add_task("measuring", total=2 * (PASSES + 1))
        figures, out = measure(model, [text for _, text in texts], lambda: bar.advance(task))
    screen(console(), texts[0], out, model, figures)
    if as_json:
        print(json.dumps({"model": model.describe(), "texts": len(texts), **figures}))


def measure(model, texts: list[str], on_pass) -> tuple[dict, object]:
    """Decode `texts` plainly and with drafts, interleaved, one text at a time.

    Returns the figures and the last Output with drafts. Speeds are tokens a second of decoding, medians over PASSES passes.
    """
    from statistics import median

    speeds: dict[str, list[float]] = {"plain": [], "drafts": []}
    outs = {}
    for number in range(PASSES + 1):
        for name, length in (("plain", 0), ("drafts", K)):
            outs[name] = model.generate(texts, max_new_tokens=TOKENS, draft_tokens=length, batch_size=1)
            if number:
                speeds[name].append(outs[name].stats.tokens_per_second)
            on_pass()
    plain, drafts = median(speeds["plain"]), median(speeds["drafts"])
    stats = outs["drafts"].stats
    return {
        "plain_tokens_per_second": plain, "tokens_per_second": drafts, "speed_up": drafts / plain,
        "same_tokens": outs["plain"].token_ids == outs["drafts"].token_ids, "accepted": stats.acceptance_rate,
        "tokens_per_step": stats.tokens_per_step,
    }, outs["drafts"]


def screen(console, example: tuple[str, str], out, model, figures: dict) -> None:
    """Print the example with its summary, the figures and the next commands."""
    from rich.padding import Padding
    from rich.text import Text

    from foredraft.bench.harness import machine
    from foredraft.cli import coloured_text

    name, text = example
    proposers = coloured_text.proposer_names(out)
    console.print()
    console.print(Text.assemble(("text     ", "bold"), (f"{name}, {len(text.split())} words", "dim")))
    start = shorten(text, 2 * (console.width - 6), placeholder=" ...", break_on_hyphens=False)
    console.print(Padding(Text(start, "dim"), (0, 2)))
    console.print()
    console.print(Text.assemble(("summary  ", "bold"), coloured_text.legend(proposers[:1])))
    console.print(Padding(coloured_text.coloured(out.token_ids[0], proposers[0], model.tokenizer), (0, 2)))
    console.print()
    same = "the same tokens" if figures["same_tokens"] else "OTHER TOKENS: a bug, please report it"
    known, here = model.describe(), machine.describe()
    for title, line in (
        ("speed", f"{figures['tokens_per_second']:,.0f} tokens a second with drafts, "
                  f"{figures['plain_tokens_per_second']:,.0f} without: {figures['speed_up']:.2f}x, {same}"),
        ("accepted", f"{figures['accepted']:.0%} of the draft tokens that the target verified"),
        ("steps", f"{figures['tokens_per_step']:.2f} tokens a pass of the target; plain decoding writes 1"),
        ("machine", f"{here['cpu']}, {known['threads']} thread{'s' * (known['threads'] != 1)}; "
                    f"the embedded model, {known['parameters'] / 1e6:.1f}M parameters, {known['weights']}"),
    ):
        console.print(Text.assemble((f"{title:9}", "bold"), line))
    console.print()
    for title, command, purpose in (
        ("next", "foredraft summarize article.txt --stats", "your own text"),
        ("", "foredraft summarize article.txt --target google/flan-t5-base", "a larger model"),
        ("", "foredraft bench run --limit 4", "all drafters compared"),
    ):
        console.print(Text.assemble((f"{title:9}", "bold"), f"{command:62}", (purpose, "dim")))
